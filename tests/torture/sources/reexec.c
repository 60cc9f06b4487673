/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A program that executes itself again and again, with the same pid: seams of its own in each image, and memory laid out
   anew where the last image may have had what a weld put there. */
#include "common.h"

int main(int argc, char **argv) {
  unsigned long round = argc > 1 ? strtoul(argv[1], 0, 10) : 0;
  unsigned count = 500 + round % 7 * 300, pages = 1 + round % 3;
  size_t filler = 20 << 20;  /* where a workshop of 16 MiB lay in an image before, this one has data */
  uint64_t *before = mmap(0, filler, RW, ANON, -1, 0);
  if (before == MAP_FAILED) bad("mmap", errno, 0);
  for (size_t w = 0; w < filler / 8; w += PAGE / 8) before[w] = word(round, w);
  uint64_t *data = fragments(count, pages, round);
  for (int again = 0; again < 4 + (int)(round % 5); again++) {
    nap(60000);
    check_fragments(data, count, pages, round);
    for (size_t w = 0; w < filler / 8; w += PAGE / 8)
      if (before[w] != word(round, w)) bad("filler differs", w, round);
  }
  beat(round);
  char next[30];
  snprintf(next, sizeof next, "%lu", round + 1);
  execl("/proc/self/exe", argv[0], next, (char *)0);
  bad("exec", errno, 0);
}
