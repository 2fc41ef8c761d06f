#include "cli/json.h"
#include "base/util.h"
#include <stdio.h>
#include <strew/strew.h>

void json_put(json_t *object, const char *key, uint64_t value)
{
	char text[24];

	if (value <= INT64_MAX) {
		json_object_set_new(object, key, json_integer((json_int_t)value));
		return;
	}
	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	json_object_set_new(object, key, json_string(text));
}

void json_put_text(json_t *object, const char *key, const char *text)
{
	json_t *string = json_string(text);
	char ascii[512];

	if (!string) {
		string_copy(ascii, sizeof(ascii), text);
		for (char *p = ascii; *p; p++) {
			*p = (unsigned char)*p > 0x7e ? '?' : *p;
		}
		string = json_string(ascii);
	}
	json_object_set_new(object, key, string);
}

const char *json_outcome(uint32_t outcome)
{
	return outcome ? strew_outcome_name((enum strew_outcome)outcome) : "";
}

void json_line(json_t *object)
{
	json_dumpf(object, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
	putchar('\n');
	json_decref(object);
}
