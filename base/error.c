#include "base/error.h"
#include "base/util.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

int error_set(struct error *err, int code, const char *format, ...)
{
	va_list ap;

	if (!err) {
		return code;
	}
	err->code = code;
	va_start(ap, format);
	vsnprintf(err->text, sizeof(err->text), format, ap);
	va_end(ap);
	return code;
}

int error_prefix(struct error *err, const char *format, ...)
{
	char rest[LIMIT_TEXT_BYTES];
	va_list ap;
	int n;

	if (!err) {
		return -EINVAL;
	}
	memcpy(rest, err->text, sizeof(rest));
	va_start(ap, format);
	n = vsnprintf(err->text, sizeof(err->text), format, ap);
	va_end(ap);
	/* What does not fit is cut off at the end, where the detail is. */
	if (n >= 0 && (size_t)n + 3 < sizeof(err->text)) {
		err->text[n++] = ':';
		err->text[n++] = ' ';
		string_copy(err->text + n, sizeof(err->text) - (size_t)n, rest);
	}
	return err->code;
}

void error_clear(struct error *err)
{
	err->code = 0;
	err->text[0] = '\0';
}

static const struct {
	enum wire_code wire;
	int code;
} codes[] = {
	{WIRE_OK, 0},
	{WIRE_INVALID, -EINVAL},
	{WIRE_RANGE, -ERANGE},
	{WIRE_UNSUPPORTED, -ENOTSUP},
	{WIRE_PROTOCOL, -EPROTO},
	{WIRE_EXISTS, -EEXIST},
	{WIRE_NOT_FOUND, -ENOENT},
	{WIRE_BUSY, -EBUSY},
	{WIRE_TIMEOUT, -ETIMEDOUT},
	{WIRE_STALE_VERSION, -ESTALE},
	{WIRE_DIRTY, -EUCLEAN},
	{WIRE_LIMIT, -E2BIG},
	{WIRE_MEMORY, -ENOMEM},
	{WIRE_DEVICE, -EIO},
	{WIRE_DENIED, -EPERM},
	{WIRE_CANCELED, -ECANCELED},
	{WIRE_GONE, -ECONNRESET},
};

enum wire_code error_to_wire(int code)
{
	for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
		if (codes[i].code == code) {
			return codes[i].wire;
		}
	}
	return WIRE_DEVICE;
}

int error_from_wire(unsigned code)
{
	for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
		if ((unsigned)codes[i].wire == code) {
			return codes[i].code;
		}
	}
	return -EPROTO;
}
