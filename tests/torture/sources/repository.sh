# SPDX-License-Identifier: GPL-2.0-or-later
# A repository of 150 commits, made where it is called.
rm -rf repository && git init -q repository && cd repository || exit
git config user.name torture && git config user.email torture@localhost && git config gc.auto 0
for round in $(seq 150); do
  for file in 1 2 3 4 5 6; do seq $((round * file)) $((round * file + 700)) > "file$file"; done
  head -c 20000 /dev/urandom | od -x > noise
  git add . && git commit -qm "round $round" || exit
done
