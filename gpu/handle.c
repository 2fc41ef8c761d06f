#include "base/util.h"
#include "gpu/backend.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

void handle_finish(struct handle *handle)
{
	for (uint32_t i = 0; handle->fds && i < handle->nchunks; i++) {
		fd_close(&handle->fds[i]);
	}
	free(handle->fds);
	free(handle->chunk_bytes);
	handle->fds = NULL;
	handle->chunk_bytes = NULL;
	handle->nchunks = 0;
}

bool uuid_is_host(const uint8_t uuid[GPU_UUID_BYTES])
{
	static const uint8_t zeros[GPU_UUID_BYTES];

	return memcmp(uuid, zeros, GPU_UUID_BYTES) == 0;
}

const char *gpu_uuid_format(char *buf, size_t buf_bytes, const uint8_t uuid[GPU_UUID_BYTES])
{
	const uint8_t *u = uuid;

	if (uuid_is_host(uuid)) {
		snprintf(buf, buf_bytes, "host");
	} else {
		snprintf(buf, buf_bytes,
			"GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
			u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11],
			u[12], u[13], u[14], u[15]);
	}
	return buf;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9') {
		return c - '0';
	}
	if (c >= 'a' && c <= 'f') {
		return c - 'a' + 10;
	}
	if (c >= 'A' && c <= 'F') {
		return c - 'A' + 10;
	}
	return -1;
}

int uuid_parse(const char *text, uint8_t ret_uuid[GPU_UUID_BYTES])
{
	uint8_t uuid[GPU_UUID_BYTES];

	/* MIG instances have UUIDs of their own, written with another prefix. */
	if (strncasecmp(text, "GPU-", 4) != 0 && strncasecmp(text, "MIG-", 4) != 0) {
		return -EINVAL;
	}
	text += 4;
	for (size_t i = 0; i < GPU_UUID_BYTES; i++) {
		int high, low;

		if (i == 4 || i == 6 || i == 8 || i == 10) {
			if (*text++ != '-') {
				return -EINVAL;
			}
		}
		high = hex_digit(text[0]);
		low = high < 0 ? -1 : hex_digit(text[1]);
		if (low < 0) {
			return -EINVAL;
		}
		uuid[i] = (uint8_t)(high << 4 | low);
		text += 2;
	}
	if (*text != '\0') {
		return -EINVAL;
	}
	memcpy(ret_uuid, uuid, GPU_UUID_BYTES);
	return 0;
}
