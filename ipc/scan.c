#include "ipc/scan.h"
#include "base/util.h"
#include <errno.h>

struct scan {
	const uint8_t *bytes;
	size_t len, at;
	unsigned values;
	uint64_t due[LIMIT_MSGPACK_DEPTH + 1]; /* values still to come, by depth */
	unsigned depth;
};

static int truncated(struct error *err)
{
	return error_set(err, -EPROTO, "the message ends in the middle of a value");
}

/* A big-endian number of n bytes behind the first byte of a value. */
static int take_number(struct scan *scan, unsigned n, uint64_t *ret_value, struct error *err)
{
	uint64_t value = 0;

	if (scan->len - scan->at < n) {
		return truncated(err);
	}
	for (unsigned i = 0; i < n; i++) {
		value = value << 8 | scan->bytes[scan->at++];
	}
	*ret_value = value;
	return 0;
}

static int skip(struct scan *scan, uint64_t n, struct error *err)
{
	if (n > scan->len - scan->at) {
		return truncated(err);
	}
	scan->at += n;
	return 0;
}

static int enter(struct scan *scan, uint64_t n, struct error *err)
{
	/* Every value has at least one byte. */
	if (n > scan->len - scan->at) {
		return error_set(err, -EPROTO, "a container of %llu values in %zu bytes",
			(unsigned long long)n, scan->len - scan->at);
	}
	if (n == 0) {
		return 0;
	}
	if (scan->depth == LIMIT_MSGPACK_DEPTH) {
		return error_set(err, -EPROTO, "nested deeper than %u", LIMIT_MSGPACK_DEPTH);
	}
	scan->due[++scan->depth] = n;
	return 0;
}

/* Sizes of the number behind the first byte, by the format's table. */
static int scan_long(struct scan *scan, uint8_t first, struct error *err)
{
	uint64_t n = 0;
	int rc;

	switch (first) {
	case 0xc0: /* nil */
	case 0xc2:
	case 0xc3:
		return 0;
	case 0xc4:
	case 0xc5:
	case 0xc6: /* bin */
		rc = take_number(scan, 1u << (first - 0xc4), &n, err);
		return rc ? rc : skip(scan, n, err);
	case 0xcc:
	case 0xcd:
	case 0xce:
	case 0xcf: /* unsigned */
		return take_number(scan, 1u << (first - 0xcc), &n, err);
	case 0xd9:
	case 0xda:
	case 0xdb: /* str */
		rc = take_number(scan, 1u << (first - 0xd9), &n, err);
		return rc ? rc : skip(scan, n, err);
	case 0xdc:
	case 0xdd: /* array */
		rc = take_number(scan, first == 0xdc ? 2 : 4, &n, err);
		return rc ? rc : enter(scan, n, err);
	case 0xde:
	case 0xdf: /* map */
		rc = take_number(scan, first == 0xde ? 2 : 4, &n, err);
		return rc ? rc : enter(scan, 2 * n, err);
	default:
		return error_set(
			err, -EPROTO, "a value of type 0x%02x, which is not used here", first);
	}
}

static int scan_one(struct scan *scan, struct error *err)
{
	uint8_t first;

	if (scan->at == scan->len) {
		return truncated(err);
	}
	if (++scan->values > LIMIT_MSGPACK_VALUES) {
		return error_set(err, -EPROTO, "more than %u values", LIMIT_MSGPACK_VALUES);
	}
	first = scan->bytes[scan->at++];
	if (first <= 0x7f) {
		return 0;
	}
	if (first <= 0x8f) {
		return enter(scan, 2u * (first & 0x0f), err);
	}
	if (first <= 0x9f) {
		return enter(scan, first & 0x0f, err);
	}
	if (first <= 0xbf) {
		return skip(scan, first & 0x1f, err);
	}
	return scan_long(scan, first, err);
}

int scan_value(const uint8_t *bytes, size_t len, size_t *ret_len, struct error *err)
{
	struct scan scan = {.bytes = bytes, .len = len};

	scan.due[0] = 1;
	for (;;) {
		int rc;

		while (scan.due[scan.depth] == 0) {
			if (scan.depth == 0) {
				*ret_len = scan.at;
				return 0;
			}
			scan.depth--;
		}
		scan.due[scan.depth]--;
		rc = scan_one(&scan, err);
		if (rc) {
			return rc;
		}
	}
}
