/* The file that holds the brokers' key: who may have written and read it, and its bytes. */
#ifndef WIRE_KEY_FILE_H
#define WIRE_KEY_FILE_H

#include "wire/seal.h"

/*
 * Reads the key. -EPERM: it is no regular file, is neither this user's nor root's, or its mode lets
 * others in; -EINVAL: fewer than SEAL_FILE_BYTES_MIN or more than SEAL_FILE_BYTES_MAX bytes;
 * else what open(2) and read(2) say. All bytes count, a newline at the end too.
 */
int key_file_read(const char *path, struct seal_key *ret_key, struct error *err);

#endif
