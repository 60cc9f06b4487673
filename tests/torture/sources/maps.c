/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Thousands of seams, laid out anew all the time, while one thread maps and unmaps areas as large as those that a weld
   uses: where a welder believes an address of its own after it has rested, it meets this program's data there. */
#include "common.h"

enum { COUNT = 4000, PAGES = 2, AREAS = 6 };
static const size_t sizes[] = {16 << 20, 32 << 20, COUNT * PAGES * PAGE, 4 << 20};
static unsigned long turns;

static void *maps(void *unused) {
  struct { uint64_t *at; size_t size; uint64_t seed; } kept[AREAS] = {0};
  unsigned seed = 1;
  for (uint64_t n = 1;; n++) {
    int k = rand_r(&seed) % AREAS;
    if (kept[k].at) munmap(kept[k].at, kept[k].size);
    kept[k].size = sizes[rand_r(&seed) % 4];
    kept[k].seed = n;
    kept[k].at = mmap(0, kept[k].size, RW, ANON, -1, 0);
    if (kept[k].at == MAP_FAILED) bad("mmap", errno, n);
    for (size_t w = 0; w < kept[k].size / 8; w += PAGE) kept[k].at[w] = word(n, w);
    for (int i = 0; i < AREAS; i++)
      for (size_t w = 0; kept[i].at && w < kept[i].size / 8; w += PAGE)
        if (kept[i].at[w] != word(kept[i].seed, w)) bad("an area differs", i, w);
    __atomic_add_fetch(&turns, 1, __ATOMIC_RELAXED);
    nap(1000);
  }
  return unused;
}

int main(void) {
  pthread_t thread;
  if (pthread_create(&thread, 0, maps, 0)) bad("pthread_create", errno, 0);
  unsigned long seen = 0;
  for (unsigned long round = 1;; round++) {
    uint64_t *data = fragments(COUNT, PAGES, round);
    for (int again = 0; again < 12; again++) {
      nap(120000);
      check_fragments(data, COUNT, PAGES, round);
      unsigned long now = __atomic_load_n(&turns, __ATOMIC_RELAXED);
      if (now > seen) beat(seen = now);
    }
    munmap(data, COUNT * PAGES * PAGE);
  }
}
