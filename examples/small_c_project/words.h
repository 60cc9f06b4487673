/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef WORDS_H
#define WORDS_H

#include <stddef.h>

struct word {
	char *text;
	unsigned long count;
	struct word *next;
};

/* A hash table of words and how often each was seen. */
struct words {
	struct word **slots;
	size_t size;
	size_t used;
};

int words_add(struct words *words, const char *text);
void words_each(const struct words *words, void (*visit)(struct word *, void *), void *data);
void words_free(struct words *words);

#endif
