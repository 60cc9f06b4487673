/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef TEXT_H
#define TEXT_H

#include <stddef.h>
#include <stdio.h>

/* A string that grows as it is read. */
struct text {
	char *bytes;
	size_t length;
	size_t room;
};

int text_append(struct text *text, char c);
int text_next_word(struct text *text, FILE *in);
void text_free(struct text *text);

#endif
