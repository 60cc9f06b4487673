/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef QUEUE_H
#define QUEUE_H

#include <stddef.h>

/* A priority queue: the entry that `before` puts first comes out first. */
struct queue {
	void **entries;
	size_t length;
	size_t room;
	int (*before)(const void *, const void *);
};

int queue_push(struct queue *queue, void *entry);
void *queue_pop(struct queue *queue);
void queue_free(struct queue *queue);

#endif
