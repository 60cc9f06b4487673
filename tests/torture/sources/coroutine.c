/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Coroutines on small stacks in the middle of a heap array: whatever is written below their stack pointers, beyond the
   red zone and the few frames they use, is the neighbours' data. */
#include "common.h"
#include <ucontext.h>

enum { WORDS = 1 << 16, STACK = 12 << 10, COROUTINES = 3 };
static uint64_t *array;
static ucontext_t home, coroutine[COROUTINES];
static char *stack_of(int k) { return (char *)array + (k + 1) * (WORDS * 8 / (COROUTINES + 1)); }

static int is_stack(size_t w) {
  for (int k = 0; k < COROUTINES; k++) {
    char *at = (char *)(array + w);
    if (at >= stack_of(k) && at < stack_of(k) + STACK) return 1;
  }
  return 0;
}

static void body(int k) {
  for (uint64_t seed = 1;; seed++) {
    for (int again = 0; again < 20; again++)
      for (size_t w = 0; w < WORDS; w++)
        if (!is_stack(w) && array[w] != word(1, w)) bad("an array around a coroutine's stack differs", k, w);
    swapcontext(&coroutine[k], &home);
  }
}

int main(void) {
  array = malloc(WORDS * 8);
  if (!array) return 4;
  for (size_t w = 0; w < WORDS; w++) array[w] = word(1, w);
  for (int k = 0; k < COROUTINES; k++) {
    getcontext(&coroutine[k]);
    coroutine[k].uc_stack.ss_sp = stack_of(k);
    coroutine[k].uc_stack.ss_size = STACK;
    makecontext(&coroutine[k], (void (*)(void))body, 1, k);
  }
  uint64_t *data = fragments(60, 3, 8);
  for (unsigned long round = 0;; round++) {
    check_fragments(data, 60, 3, 8);
    if (round % 40 == 39) {
      munmap(data, 180 * PAGE);
      data = fragments(60, 3, 8);
    }
    for (int k = 0; k < COROUTINES; k++) swapcontext(&home, &coroutine[k]);
    beat(round);
  }
}
