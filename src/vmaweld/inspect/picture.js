// SPDX-License-Identifier: GPL-2.0-or-later
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const { meta, rows, seams, strings } = data;
  const count = rows.pages.length;
  const PAGE = 4096;

  // Addresses stay exact in a double: user space ends at 2^47, pages count 2^35.
  const startPage = new Float64Array(count);
  for (let i = 0, at = 0; i < count; i++) {
    at += rows.gap[i];
    startPage[i] = at;
    at += rows.pages[i];
  }
  // seamAt[i]: which seam lies between row i and row i + 1, -1 for none.
  const seamAt = new Int32Array(count).fill(-1);
  seams.row.forEach((row, i) => { seamAt[row] = i; });
  const openDetail = new Map(data.open.seam.map((seam, i) => [seam, i]));
  const isOpen = (seam) => data.classes[seams.cls[seam]].open;

  // ---- words -------------------------------------------------------------------------------------------------
  const hex = (page) => (page * PAGE).toString(16);
  const number = (n) => n.toLocaleString("en");
  function bytes(pages) {
    let value = pages * 4, unit = 0;
    const units = ["KiB", "MiB", "GiB", "TiB"];
    while (value >= 1024 && unit < 3) { value /= 1024; unit++; }
    return (value >= 100 || value === Math.floor(value) ? value.toFixed(0) : value.toFixed(1)) + " " + units[unit];
  }
  const nameOf = (i) => strings[rows.name[i]];
  function describeRow(i) {
    const lines = [
      `${hex(startPage[i])}-${hex(startPage[i] + rows.pages[i])}  ${bytes(rows.pages[i])}`,
      `${strings[rows.perms[i]]}  ${data.kinds[rows.kind[i]].name}${nameOf(i) ? "  " + nameOf(i) : ""}`,
    ];
    if (strings[rows.flags[i]]) lines.push(`flags: ${strings[rows.flags[i]]}`);
    if (rows.shift[i] !== null) {
      lines.push(`page offset: ${(startPage[i] + rows.shift[i]).toString(16)}` +
        (data.kinds[rows.kind[i]].name.startsWith("file") ? "" :
          rows.shift[i] ? `, ${number(Math.abs(rows.shift[i]))} pages ${rows.shift[i] > 0 ? "above" : "below"} its address` : ", that of its address"));
    }
    if (rows.anon[i] !== null) lines.push(rows.anon[i] ? `anon_vma: #${rows.anon[i]}` : "anon_vma: none");
    return lines.join("\n");
  }
  function describeSeam(s) {
    const row = seams.row[s];
    let text = `${isOpen(s) ? "open seam" : "seam"} at ${hex(startPage[row + 1])}: ${strings[seams.why[s]]}`;
    const at = openDetail.get(s);
    if (at !== undefined) {
      if (data.open.populated[at] !== null)
        text += `\n${number(data.open.populated[at])} pages populated, ${number(data.open.shared[at])} shared`;
      if (strings[data.open.obstacles[at]]) text += `\nin the way of welding: ${strings[data.open.obstacles[at]]}`;
    }
    return text;
  }

  // ---- the axis ----------------------------------------------------------------------------------------------
  // left[i], width[i]: where row i lies, in axis units; gaps have a width of their own that does not grow.
  const left = new Float64Array(count), width = new Float64Array(count);
  let total = 1, view = { from: 0, to: 1 };
  function layOut(mode) {
    let pages = 0;
    for (let i = 0; i < count; i++) pages += rows.pages[i];
    const gap = mode === "scale" ? pages / 400 : mode === "equal" ? 0.5 : 2;
    let at = 0;
    for (let i = 0; i < count; i++) {
      if (rows.gap[i] && i) at += gap;
      left[i] = at;
      width[i] = mode === "scale" ? rows.pages[i] : mode === "equal" ? 1 : 1 + Math.log2(rows.pages[i]);
      at += width[i];
    }
    total = at || 1;
    view = { from: 0, to: total };
  }
  function rowAt(unit) { // the last row that begins at or before `unit`
    let low = 0, high = count - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (left[middle] <= unit) low = middle; else high = middle - 1;
    }
    return low;
  }

  // ---- colours -----------------------------------------------------------------------------------------------
  const hidden = new Set(); // classes of seams that the legend switches off
  let dark = false;
  let ink, soft, line, paper, focus;
  const kindColour = (k) => data.kinds[k].colour[dark ? 1 : 0];
  const classColour = (c) => data.classes[c].colour[dark ? 1 : 0];
  function setTheme(value) {
    dark = value;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    const style = getComputedStyle(document.documentElement);
    [ink, soft, line, paper, focus] = ["--ink", "--soft", "--line", "--paper", "--focus"].map((n) => style.getPropertyValue(n));
    for (const swatch of document.querySelectorAll("[data-kind]")) swatch.style.background = kindColour(swatch.dataset.kind);
    for (const swatch of document.querySelectorAll("[data-class]")) swatch.style.background = classColour(swatch.dataset.class);
    draw();
  }

  // ---- drawing -----------------------------------------------------------------------------------------------
  const strip = $("strip"), overview = $("overview");
  const BAND = 24, BAND_HEIGHT = 92, TICKS = BAND + BAND_HEIGHT + 6, TICKS_HEIGHT = 84;
  function prepare(canvas) {
    const ratio = window.devicePixelRatio || 1;
    const w = canvas.clientWidth, h = canvas.clientHeight;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round(h * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, w, h);
    return [pen, w, h];
  }
  const toX = (unit, w) => ((unit - view.from) / (view.to - view.from)) * w;
  const toUnit = (x, w) => view.from + (x / w) * (view.to - view.from);

  // Level of detail: what is wider than a pixel is drawn as it is; what is not is added up by pixel column, and
  // the column shows the kind that fills most of it and how many seams of each class lie in it.
  function paint(pen, w, top, height, tickTop, tickHeight, from, to, detailed) {
    const scale = w / (to - from);
    const columns = Math.ceil(w) + 1, kinds = data.kinds.length, classes = data.classes.length;
    const fill = new Float64Array(columns * kinds);
    const density = new Float64Array(columns * classes);
    const first = rowAt(from);
    let shown = 0, openShown = 0, i = first;
    const wide = [];
    for (; i < count && left[i] <= to; i++) {
      const x = (left[i] - from) * scale, span = width[i] * scale;
      if (x + span < 0) continue;
      shown++;
      if (span >= 2) wide.push(i);
      else {
        const column = Math.min(columns - 1, Math.max(0, Math.floor(x)));
        fill[column * kinds + rows.kind[i]] += span;
      }
      const s = seamAt[i];
      if (s >= 0) {
        const column = Math.floor(x + span);
        if (column >= 0 && column < columns) {
          if (isOpen(s)) openShown++;
          if (!hidden.has(seams.cls[s])) density[column * classes + seams.cls[s]] += 1;
        }
      }
    }
    for (let c = 0; c < columns; c++) {
      let best = -1, most = 0;
      for (let k = 0; k < kinds; k++) if (fill[c * kinds + k] > most) { most = fill[c * kinds + k]; best = k; }
      if (best >= 0) { pen.fillStyle = kindColour(best); pen.fillRect(c, top, 1, height); }
    }
    for (const r of wide) {
      const x = (left[r] - from) * scale, span = width[r] * scale;
      pen.fillStyle = kindColour(rows.kind[r]);
      pen.fillRect(x, top, Math.max(span - (span > 4 ? 1 : 0), 1), height);
      if (detailed && span > 44) label(pen, r, Math.max(x, 0), Math.min(span + Math.min(x, 0), w - Math.max(x, 0)), top);
    }
    // Seams: stacked bars by class, as high as the fullest column allows; one alone fills a third at least.
    let fullest = 1;
    for (let c = 0; c < columns; c++) {
      let sum = 0;
      for (let k = 0; k < classes; k++) sum += density[c * classes + k];
      if (sum > fullest) fullest = sum;
    }
    const tick = detailed && fullest === 1 ? 2 : 1;
    for (let c = 0; c < columns; c++) {
      let sum = 0;
      for (let k = 0; k < classes; k++) sum += density[c * classes + k];
      if (!sum) continue;
      let high = tickHeight * (fullest === 1 ? 1 : 0.33 + 0.67 * Math.sqrt(sum / fullest));
      if (!openIn(density, c * classes, classes)) high *= 0.55;
      let y = tickTop;
      for (let k = classes - 1; k >= 0; k--) { // open classes are last in the list and drawn on top
        const part = (density[c * classes + k] / sum) * high;
        if (!part) continue;
        pen.fillStyle = classColour(k);
        pen.fillRect(c - (tick > 1 ? 1 : 0), y, tick, part);
        y += part;
      }
    }
    return { shown, openShown, first, last: i - 1 };
  }
  function openIn(density, from, classes) {
    for (let k = 0; k < classes; k++) if (density[from + k] && data.classes[k].open) return true;
    return false;
  }
  function label(pen, r, x, room, top) {
    pen.save();
    pen.beginPath();
    pen.rect(x, top, room - 3, BAND_HEIGHT);
    pen.clip();
    pen.fillStyle = ink;
    pen.font = "11px ui-monospace, monospace";
    pen.fillText(bytes(rows.pages[r]), x + 4, top + 16);
    pen.fillText(strings[rows.perms[r]], x + 4, top + 31);
    pen.fillText(nameOf(r).split("/").pop(), x + 4, top + 46);
    pen.restore();
  }
  let last = { shown: 0, openShown: 0, first: 0, last: -1 };
  let pointer = null;
  function draw() {
    if (!ink) return;
    let [pen, w, h] = prepare(overview);
    paint(pen, w, 2, 22, 26, 12, 0, total, false);
    const x1 = (view.from / total) * w, x2 = (view.to / total) * w;
    if (view.from > 0 || view.to < total) {
      pen.strokeStyle = focus;
      pen.lineWidth = 2;
      pen.strokeRect(x1, 1, Math.max(x2 - x1, 3), h - 2);
    }
    [pen, w, h] = prepare(strip);
    last = paint(pen, w, BAND, BAND_HEIGHT, TICKS, TICKS_HEIGHT, view.from, view.to, true);
    pen.fillStyle = soft;
    pen.font = "11px ui-monospace, monospace";
    let free = 0;
    for (let x = 0; x < w - 90; x += 130) { // addresses along the top
      const r = rowAt(toUnit(x, w)), at = Math.max(toX(left[r], w), 0);
      if (at < free || at > w - 90 || !count) continue;
      pen.fillText(hex(startPage[r]), at, 14);
      pen.fillRect(at, 17, 1, 5);
      free = at + 110;
    }
    pen.fillText("seams", 0, h - 6);
    if (pointer !== null) {
      pen.fillStyle = ink;
      pen.globalAlpha = 0.5;
      pen.fillRect(pointer, BAND, 1, TICKS + TICKS_HEIGHT - BAND);
      pen.globalAlpha = 1;
    }
    if (count)
      $("view").textContent = `${number(last.shown)} VMAs and ${number(last.openShown)} open seams in view, ` +
        `${hex(startPage[last.first])}-${hex(startPage[last.last] + rows.pages[last.last])}`;
    scheduleTable();
  }
  let pendingDraw = 0;
  const redraw = () => { if (!pendingDraw) pendingDraw = requestAnimationFrame(() => { pendingDraw = 0; draw(); }); };

  // ---- the table ---------------------------------------------------------------------------------------------
  const TABLE_ROWS = 100;
  let pendingTable = null;
  function scheduleTable() { // at once the first time, then when the view rests
    if (pendingTable === null) fillTable();
    clearTimeout(pendingTable);
    pendingTable = setTimeout(fillTable, 120);
  }
  function fillTable() {
    const body = $("rows"), made = document.createDocumentFragment();
    let listed = 0, all = 0;
    for (let i = last.first; i <= last.last; i++) {
      const s = seamAt[i];
      if (s < 0 || !isOpen(s) || hidden.has(seams.cls[s])) continue;
      all++;
      if (listed >= TABLE_ROWS) continue;
      listed++;
      const at = openDetail.get(s), tr = document.createElement("tr");
      const known = at !== undefined && data.open.populated[at] !== null;
      for (const text of [
        hex(startPage[i + 1]), bytes(rows.pages[i]), bytes(rows.pages[i + 1]),
        known ? number(data.open.populated[at]) : "", known ? number(data.open.shared[at]) : "",
        strings[seams.why[s]], at === undefined ? "" : strings[data.open.obstacles[at]] || "nothing",
      ]) tr.appendChild(document.createElement("td")).textContent = text;
      tr.addEventListener("click", () => showRow(i));
      made.appendChild(tr);
    }
    body.replaceChildren(made);
    $("table-title").textContent = `Open seams in view: ${number(all)}` +
      (all > listed ? `, the first ${number(listed)} of them; zoom in for others` : "");
  }

  // ---- moving ------------------------------------------------------------------------------------------------
  function setView(from, to) {
    let span = Math.min(Math.max(to - from, Math.min(total, 4)), total);
    const at = Math.min(Math.max(from, 0), total - span);
    view = { from: at, to: at + span };
    redraw();
  }
  function zoom(unit, factor) {
    setView(unit - (unit - view.from) * factor, unit + (view.to - unit) * factor);
  }
  function showRow(i) { // row i and its neighbours, in the middle
    const middle = left[i] + width[i], span = Math.max(width[i] + (width[i + 1] || 0), 1) * 4;
    setView(middle - span / 2, middle + span / 2);
  }
  const position = (event, canvas) => event.clientX - canvas.getBoundingClientRect().left;
  strip.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      const step = (event.deltaX / strip.clientWidth) * (view.to - view.from);
      setView(view.from + step, view.to + step);
    } else zoom(toUnit(position(event, strip), strip.clientWidth), event.deltaY > 0 ? 1.25 : 0.8);
  }, { passive: false });
  strip.addEventListener("dblclick", (event) => zoom(toUnit(position(event, strip), strip.clientWidth), 0.25));
  let drag = null;
  strip.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, view }; strip.setPointerCapture(event.pointerId); });
  strip.addEventListener("pointerup", () => { drag = null; });
  strip.addEventListener("pointermove", (event) => {
    if (drag) {
      const step = ((drag.x - event.clientX) / strip.clientWidth) * (drag.view.to - drag.view.from);
      setView(drag.view.from + step, drag.view.to + step);
    }
    pointer = position(event, strip);
    hover(event);
    redraw();
  });
  strip.addEventListener("pointerleave", () => { pointer = null; $("tip").hidden = true; redraw(); });
  function jump(event) {
    const unit = (position(event, overview) / overview.clientWidth) * total, half = (view.to - view.from) / 2;
    setView(unit - half, unit + half);
  }
  overview.addEventListener("pointerdown", (event) => { overview.setPointerCapture(event.pointerId); jump(event); });
  overview.addEventListener("pointermove", (event) => { if (event.buttons) jump(event); });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const span = view.to - view.from, middle = (view.from + view.to) / 2;
    if (event.key === "+" || event.key === "=") zoom(middle, 0.5);
    else if (event.key === "-") zoom(middle, 2);
    else if (event.key === "ArrowLeft") setView(view.from - span / 4, view.to - span / 4);
    else if (event.key === "ArrowRight") setView(view.from + span / 4, view.to + span / 4);
    else if (event.key === "0") setView(0, total);
    else if (event.key === "n") nextOpen();
    else return;
    event.preventDefault();
  });
  function nextOpen() {
    const middle = rowAt((view.from + view.to) / 2), whole = view.to - view.from >= total;
    for (let step = 0; step < count; step++) {
      const i = ((whole ? 0 : middle + 1) + step) % count, s = seamAt[i];
      if (s >= 0 && isOpen(s) && !hidden.has(seams.cls[s])) return showRow(i);
    }
  }
  $("next-open").addEventListener("click", nextOpen);
  $("reset").addEventListener("click", () => setView(0, total));
  $("theme").addEventListener("click", () => setTheme(!dark));
  $("axis").addEventListener("change", (event) => { layOut(event.target.value); redraw(); });
  $("find").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    const wanted = event.target.value.trim().toLowerCase(), page = Math.floor(parseInt(wanted, 16) / PAGE);
    const after = rowAt((view.from + view.to) / 2);
    for (let step = 0; step < count; step++) {
      const i = (after + 1 + step) % count;
      const byAddress = /^(0x)?[0-9a-f]{4,}$/.test(wanted) && startPage[i] <= page && page < startPage[i] + rows.pages[i];
      if (wanted && (byAddress || nameOf(i).toLowerCase().includes(wanted))) return showRow(i);
    }
  });

  // ---- hovering ----------------------------------------------------------------------------------------------
  function hover(event) {
    if (!count) return;
    const w = strip.clientWidth, x = position(event, strip), y = event.clientY - strip.getBoundingClientRect().top;
    const perPixel = (view.to - view.from) / w;
    let text;
    // The seam nearest to the pointer, within four pixels; below the band only seams are meant.
    const near = y > TICKS ? 6 : 3, unit = toUnit(x, w);
    const low = rowAt(unit - near * perPixel), high = Math.min(rowAt(unit + near * perPixel), count - 1);
    const found = [];
    for (let i = low; i <= high; i++) {
      const s = seamAt[i], border = left[i] + width[i];
      if (s >= 0 && !hidden.has(seams.cls[s]) && Math.abs(border - unit) <= near * perPixel) found.push(i);
    }
    if (found.length > 2) {
      const sums = new Map();
      for (const i of found) sums.set(seams.cls[seamAt[i]], (sums.get(seams.cls[seamAt[i]]) || 0) + 1);
      text = `${number(high - low + 1)} VMAs and ${number(found.length)} seams here; zoom in for each\n` +
        `${hex(startPage[low])}-${hex(startPage[high] + rows.pages[high])}\n` +
        [...sums].sort((a, b) => b[1] - a[1]).map(([c, n]) => `${number(n)} ${data.classes[c].open ? "open" : "shut"}: ${data.classes[c].name}`).join("\n");
    } else if (found.length) {
      const i = found.reduce((a, b) => Math.abs(left[a] + width[a] - unit) < Math.abs(left[b] + width[b] - unit) ? a : b);
      text = `${describeSeam(seamAt[i])}\n\nleft   ${describeRow(i).replaceAll("\n", "\n       ")}\n\nright  ${describeRow(i + 1).replaceAll("\n", "\n       ")}`;
    } else {
      const i = rowAt(unit);
      if (unit > left[i] + width[i]) text = i + 1 < count ? `nothing mapped: ${bytes(rows.gap[i + 1])}` : "";
      else text = describeRow(i);
    }
    const tip = $("tip");
    tip.hidden = !text;
    tip.textContent = text;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, window.innerWidth - box.width - 8))}px`;
    tip.style.top = `${Math.min(event.clientY + 18, Math.max(4, window.innerHeight - box.height - 8))}px`;
  }

  // ---- words around the picture ------------------------------------------------------------------------------
  $("title").textContent = meta.title;
  $("source").textContent = meta.source;
  for (const [term, value] of meta.tiles) {
    const box = $("tiles").appendChild(document.createElement("div"));
    box.appendChild(document.createElement("dt")).textContent = term;
    box.appendChild(document.createElement("dd")).textContent = value;
  }
  function legend(list, key, index, name, total, meaning, toggles) {
    const item = list.appendChild(document.createElement("li"));
    const box = item.appendChild(document.createElement(toggles ? "button" : "span"));
    box.className = toggles ? "" : "plain";
    box.title = meaning;
    const swatch = box.appendChild(document.createElement("span"));
    swatch.className = "swatch";
    swatch.dataset[key] = index;
    box.append(name);
    const amount = box.appendChild(document.createElement("span"));
    amount.className = "count";
    amount.textContent = total;
    if (!toggles) return;
    box.type = "button";
    box.setAttribute("aria-pressed", "true");
    box.addEventListener("click", () => {
      if (hidden.has(index)) hidden.delete(index); else hidden.add(index);
      box.setAttribute("aria-pressed", String(!hidden.has(index)));
      redraw();
    });
  }
  data.classes.forEach((c, i) => {
    if (c.count) legend($("reasons"), "class", i, (c.open ? "open: " : "") + c.name, number(c.count), c.meaning, true);
  });
  data.kinds.forEach((k, i) => {
    if (k.count) legend($("kinds"), "kind", i, k.name, `${number(k.count)}, ${bytes(k.pages)}`, k.meaning, false);
  });

  // For scripts and tests: where a row or a seam lies on the strip, in CSS pixels from its left edge.
  window.vmaweld = {
    rows: count,
    seams: seams.row.length,
    rowX: (i) => toX(left[i] + width[i] / 2, strip.clientWidth),
    seamX: (s) => toX(left[seams.row[s]] + width[seams.row[s]], strip.clientWidth),
    bandY: BAND + BAND_HEIGHT / 2,
    ticksY: TICKS + 10,
    seamColour: (s) => classColour(seams.cls[s]),
    rowColour: (i) => kindColour(rows.kind[i]),
    showSeam: (s) => { showRow(seams.row[s]); draw(); },
    showAll: () => { setView(0, total); draw(); },
  };
  layOut("log");
  new ResizeObserver(redraw).observe(strip);
  const query = window.matchMedia("(prefers-color-scheme: dark)");
  query.addEventListener("change", (event) => setTheme(event.matches));
  setTheme(query.matches);
})();
