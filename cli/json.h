/* JSON on stdout, with numbers and strings that came from a broker. */
#ifndef CLI_JSON_H
#define CLI_JSON_H

#include <jansson.h>
#include <stdint.h>

/* 64-bit numbers beyond what a JSON integer of jansson holds are given as strings. */
void json_put(json_t *object, const char *key, uint64_t value);
/* A peer's string may not be UTF-8; then its bytes beyond ASCII become '?'. */
void json_put_text(json_t *object, const char *key, const char *text);
/* The name of an enum strew_outcome; "" for none. */
const char *json_outcome(uint32_t outcome);
/* Prints it in one line, and lets go of it. */
void json_line(json_t *object);

#endif
