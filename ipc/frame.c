#include "ipc/frame.h"
#include <errno.h>

static void put(uint8_t *to, uint64_t value, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		to[i] = (uint8_t)(value >> 8 * i);
	}
}

static uint64_t get(const uint8_t *from, unsigned n)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < n; i++) {
		value |= (uint64_t)from[i] << 8 * i;
	}
	return value;
}

void frame_header_put(uint8_t to[FRAME_HEADER_BYTES], const struct frame_header *header)
{
	put(to, FRAME_MAGIC, 4);
	put(to + 4, PROTOCOL_VERSION, 2);
	put(to + 6, header->type, 2);
	put(to + 8, header->payload_bytes, 4);
	put(to + 12, header->fds, 4);
	put(to + 16, header->serial, 8);
}

int frame_header_get(
	const uint8_t from[FRAME_HEADER_BYTES], struct frame_header *ret_header, struct error *err)
{
	struct frame_header header = {
		.type = (uint16_t)get(from + 6, 2),
		.payload_bytes = (uint32_t)get(from + 8, 4),
		.fds = (uint32_t)get(from + 12, 4),
		.serial = get(from + 16, 8),
	};

	if (get(from, 4) != FRAME_MAGIC) {
		return error_set(err, -EPROTO, "this is no frame of strew (magic 0x%08x)",
			(unsigned)get(from, 4));
	}
	if (get(from + 4, 2) != PROTOCOL_VERSION) {
		return error_set(err, -EPROTO, "the peer speaks protocol %u, this side %u",
			(unsigned)get(from + 4, 2), PROTOCOL_VERSION);
	}
	if (header.payload_bytes > LIMIT_FRAME_BYTES - FRAME_HEADER_BYTES) {
		return error_set(err, -E2BIG, "a frame of %u bytes passes the limit of %u",
			header.payload_bytes, LIMIT_FRAME_BYTES);
	}
	if (header.fds > LIMIT_FRAME_FDS) {
		return error_set(err, -EPROTO, "a frame with %u descriptors passes the limit of %u",
			header.fds, LIMIT_FRAME_FDS);
	}
	*ret_header = header;
	return 0;
}
