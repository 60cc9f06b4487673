/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "queue.h"

#include <stdlib.h>

static void swap(void **a, void **b)
{
	void *c = *a;

	*a = *b;
	*b = c;
}

int queue_push(struct queue *queue, void *entry)
{
	size_t at = queue->length;

	if (queue->length == queue->room) {
		size_t room = queue->room ? 2 * queue->room : 32;
		void **entries = realloc(queue->entries, room * sizeof(*entries));

		if (!entries)
			return -1;
		queue->entries = entries;
		queue->room = room;
	}
	queue->entries[queue->length++] = entry;
	while (at && queue->before(queue->entries[at], queue->entries[(at - 1) / 2])) {
		swap(&queue->entries[at], &queue->entries[(at - 1) / 2]);
		at = (at - 1) / 2;
	}
	return 0;
}

void *queue_pop(struct queue *queue)
{
	void *first;
	size_t at = 0;

	if (!queue->length)
		return NULL;
	first = queue->entries[0];
	queue->entries[0] = queue->entries[--queue->length];
	for (;;) {
		size_t child = 2 * at + 1;

		if (child >= queue->length)
			return first;
		if (child + 1 < queue->length && queue->before(queue->entries[child + 1], queue->entries[child]))
			child++;
		if (!queue->before(queue->entries[child], queue->entries[at]))
			return first;
		swap(&queue->entries[child], &queue->entries[at]);
		at = child;
	}
}

void queue_free(struct queue *queue)
{
	free(queue->entries);
}
