/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Counts the words on standard input and prints them, the most frequent first. */
#include "queue.h"
#include "text.h"
#include "words.h"

#include <string.h>

static int more_frequent(const void *a, const void *b)
{
	const struct word *first = a, *second = b;

	if (first->count != second->count)
		return first->count > second->count;
	return strcmp(first->text, second->text) < 0;
}

static void enqueue(struct word *word, void *data)
{
	queue_push(data, word);
}

int main(void)
{
	struct text text = { 0 };
	struct words words = { 0 };
	struct queue queue = { .before = more_frequent };
	struct word *word;
	int more;

	while ((more = text_next_word(&text, stdin)) > 0)
		if (words_add(&words, text.bytes))
			return 1;
	if (more < 0)
		return 1;
	words_each(&words, enqueue, &queue);
	while ((word = queue_pop(&queue)))
		printf("%lu %s\n", word->count, word->text);
	queue_free(&queue);
	words_free(&words);
	text_free(&text);
	return 0;
}
