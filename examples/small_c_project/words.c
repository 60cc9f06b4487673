/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "words.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static size_t hash(const char *text)
{
	uint64_t sum = 14695981039346656037u;

	while (*text)
		sum = (sum ^ (unsigned char)*text++) * 1099511628211u;
	return (size_t)sum;
}

static int grow(struct words *words)
{
	size_t size = words->size ? 2 * words->size : 64;
	struct word **slots = calloc(size, sizeof(*slots));

	if (!slots)
		return -1;
	for (size_t i = 0; i < words->size; i++) {
		struct word *next;

		for (struct word *word = words->slots[i]; word; word = next) {
			size_t slot = hash(word->text) % size;

			next = word->next;
			word->next = slots[slot];
			slots[slot] = word;
		}
	}
	free(words->slots);
	words->slots = slots;
	words->size = size;
	return 0;
}

int words_add(struct words *words, const char *text)
{
	struct word *word;
	size_t slot;

	if (words->used >= words->size && grow(words))
		return -1;
	slot = hash(text) % words->size;
	for (word = words->slots[slot]; word; word = word->next) {
		if (!strcmp(word->text, text)) {
			word->count++;
			return 0;
		}
	}
	word = malloc(sizeof(*word));
	if (!word)
		return -1;
	word->text = strdup(text);
	if (!word->text) {
		free(word);
		return -1;
	}
	word->count = 1;
	word->next = words->slots[slot];
	words->slots[slot] = word;
	words->used++;
	return 0;
}

void words_each(const struct words *words, void (*visit)(struct word *, void *), void *data)
{
	for (size_t i = 0; i < words->size; i++)
		for (struct word *word = words->slots[i]; word; word = word->next)
			visit(word, data);
}

void words_free(struct words *words)
{
	for (size_t i = 0; i < words->size; i++) {
		struct word *next;

		for (struct word *word = words->slots[i]; word; word = next) {
			next = word->next;
			free(word->text);
			free(word);
		}
	}
	free(words->slots);
}
