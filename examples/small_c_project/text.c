/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "text.h"

#include <ctype.h>
#include <stdlib.h>

int text_append(struct text *text, char c)
{
	if (text->length + 1 >= text->room) {
		size_t room = text->room ? 2 * text->room : 16;
		char *bytes = realloc(text->bytes, room);

		if (!bytes)
			return -1;
		text->bytes = bytes;
		text->room = room;
	}
	text->bytes[text->length++] = c;
	text->bytes[text->length] = '\0';
	return 0;
}

/* 1 when a word was read, 0 at the end of the input, -1 without memory. */
int text_next_word(struct text *text, FILE *in)
{
	int c;

	text->length = 0;
	while ((c = getc(in)) != EOF) {
		if (isalnum(c)) {
			if (text_append(text, (char)tolower(c)))
				return -1;
		} else if (text->length) {
			break;
		}
	}
	return text->length > 0;
}

void text_free(struct text *text)
{
	free(text->bytes);
	text->bytes = NULL;
	text->length = text->room = 0;
}
