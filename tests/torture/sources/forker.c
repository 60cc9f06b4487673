/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A program that forks and waits: children check what they inherited, write to it, and check that; the parent's stays. */
#include "common.h"

enum { COUNT = 100, PAGES = 3, CHILDREN = 3 };

int main(void) {
  for (unsigned long round = 1;; round++) {
    uint64_t *data = fragments(COUNT, PAGES, round);
    for (int generation = 0; generation < 6; generation++) {
      pid_t child[CHILDREN];
      for (int k = 0; k < CHILDREN; k++) {
        child[k] = fork();
        if (child[k] < 0) bad("fork", errno, 0);
        if (child[k]) continue;
        check_fragments(data, COUNT, PAGES, round);
        for (size_t w = k; w < COUNT * PAGES * PAGE / 8; w += 700) data[w] = k;
        nap(30000 * k);
        for (size_t w = k; w < COUNT * PAGES * PAGE / 8; w += 700)
          if (data[w] != (uint64_t)k) bad("a child's own word differs", w, k);
        _exit(40 + k);
      }
      for (int k = 0; k < CHILDREN; k++) {
        int status = 0;
        if (waitpid(child[k], &status, 0) != child[k]) bad("waitpid", errno, k);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 40 + k) bad("a child's status", status, k);
      }
      check_fragments(data, COUNT, PAGES, round);
      for (size_t w = 0; w < COUNT * PAGES * PAGE / 8; w++)  /* all pages are the parent's own again */
        *(volatile uint64_t *)&data[w] = data[w];
      nap(50000);
    }
    munmap(data, COUNT * PAGES * PAGE);
    beat(round);
  }
}
