/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the C programs share: a line a round, the reason when the data is wrong, and memory that has seams of its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static void beat(unsigned long round) {
  char line[40];
  int n = snprintf(line, sizeof line, "ok %lu\n", round);
  if (write(1, line, n) != n) _exit(4);
}

static void bad(const char *why, unsigned long a, unsigned long b) {
  char line[200];
  int n = snprintf(line, sizeof line, "bad: %s (%lu, %lu)\n", why, a, b);
  if (write(1, line, n) != n) _exit(4);
  _exit(3);
}

static inline uint64_t word(uint64_t seed, uint64_t index) {
  uint64_t x = seed * 0x9e3779b97f4a7c15ul + index * 0xbf58476d1ce4e5b9ul;
  return x ^ x >> 31;
}

static inline void nap(long us) {
  struct timespec left = {us / 1000000, us % 1000000 * 1000};
  while (nanosleep(&left, &left) && errno == EINTR) {
  }
}

/* `count` VMAs side by side of `pages` pages each: written elsewhere, then moved to their place, so each has an anon_vma
   and a page offset of its own. Word w of fragment f is word(seed, f << 32 | w). */
static inline uint64_t *fragments(unsigned count, unsigned pages, uint64_t seed) {
  size_t size = pages * PAGE;
  char *at = mmap(0, count * size + 2 * PAGE, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) bad("mmap", errno, 0);
  at += PAGE;
  for (unsigned f = 0; f < count; f++) {
    char *guards = mmap(0, size + 2 * PAGE, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);
    if (guards == MAP_FAILED) bad("mmap", errno, 1);
    uint64_t *place = mmap(guards + PAGE, size, RW, ANON | MAP_FIXED, -1, 0);
    if (place == MAP_FAILED) bad("mmap", errno, 2);
    for (uint64_t w = 0; w < size / 8; w++) place[w] = word(seed, (uint64_t)f << 32 | w);
    if (mremap(place, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, at + f * size) == MAP_FAILED) bad("mremap", errno, 0);
    munmap(guards, size + 2 * PAGE);
  }
  return (uint64_t *)at;
}

static inline void check_fragments(uint64_t *at, unsigned count, unsigned pages, uint64_t seed) {
  for (unsigned f = 0; f < count; f++)
    for (uint64_t w = 0; w < pages * PAGE / 8; w++)
      if (at[f * (pages * PAGE / 8) + w] != word(seed, (uint64_t)f << 32 | w)) bad("fragment differs", f, w);
}
