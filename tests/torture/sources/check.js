// SPDX-License-Identifier: GPL-2.0-or-later
const crypto = require('crypto');
const hash = b => crypto.createHash('md5').update(b).digest('hex');
const kept = [];
let round = 0;
setInterval(() => {
  for (let i = 0; i < 20; i++) {
    const b = Buffer.from(Array.from({length: 3000}, (_, k) => (k * i + round) & 255));
    kept.push({b, h: hash(b), o: {i, round, s: 'x'.repeat(i)}});
  }
  if (kept.length > 3000) kept.splice(0, 1000);
  for (const k of kept) if (hash(k.b) !== k.h || k.o.s.length !== k.o.i) { console.log('bad'); process.exit(3); }
  console.log('ok ' + ++round);
}, 5);
