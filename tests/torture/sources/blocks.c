/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Threads that allocate, grow, shift and check blocks of the heap; built against any C library, dynamic or static. */
#include "common.h"

enum { THREADS = 3, BLOCKS = 300 };
static unsigned long rounds[THREADS];

static void *work(void *which) {
  unsigned seed = (unsigned)(uintptr_t)which + 1;
  struct { uint64_t *at; size_t words; uint64_t seed; } kept[BLOCKS] = {0};
  for (uint64_t n = 1;; n++) {
    for (int i = 0; i < 20; i++) {
      unsigned k = rand_r(&seed) % BLOCKS;
      size_t words = 1 + rand_r(&seed) % (rand_r(&seed) % 30 ? 3000 : 60000);
      uint64_t *at = realloc(kept[k].at, words * 8);
      if (!at) bad("realloc", words, 0);
      size_t same = kept[k].words < words ? kept[k].words : words;
      for (size_t w = 0; w < same; w++)
        if (at[w] != word(kept[k].seed, w)) bad("realloc lost a word", k, w);
      for (size_t w = 0; w < words; w++) at[w] = word(n, w);
      kept[k].at = at, kept[k].words = words, kept[k].seed = n;
    }
    for (int k = 0; k < BLOCKS; k++)
      for (size_t w = 0; w < kept[k].words; w++)
        if (kept[k].at[w] != word(kept[k].seed, w)) bad("block differs", k, w);
    __atomic_add_fetch(&rounds[(uintptr_t)which], 1, __ATOMIC_RELAXED);
  }
}

int main(void) {
  for (uintptr_t i = 0; i < THREADS; i++) {
    pthread_t thread;
    if (pthread_create(&thread, 0, work, (void *)i)) bad("pthread_create", i, 0);
  }
  for (unsigned long shown = 0;;) {
    nap(10000);
    unsigned long least = -1ul;
    for (int i = 0; i < THREADS; i++) {
      unsigned long now = __atomic_load_n(&rounds[i], __ATOMIC_RELAXED);
      if (now < least) least = now;
    }
    if (least > shown) beat(shown = least);
  }
}
