/* The fixed header of a frame: little-endian, FRAME_HEADER_BYTES long. */
#ifndef IPC_FRAME_H
#define IPC_FRAME_H

#include "ipc/messages.h"

struct frame_header {
	uint16_t type;
	uint32_t payload_bytes;
	uint32_t fds;
	uint64_t serial;
};

void frame_header_put(uint8_t to[FRAME_HEADER_BYTES], const struct frame_header *header);

/* -EPROTO: another magic, version, or more fds than allowed; -E2BIG: too long. */
int frame_header_get(
	const uint8_t from[FRAME_HEADER_BYTES], struct frame_header *ret_header, struct error *err);

#endif
