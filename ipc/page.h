/*
 * Session pages: one memfd written by a single side and read by the other. The
 * writer maps it, then seals it against all later writable mappings, shrinking
 * and growing, so that the reader can trust its size and the writer its words.
 * Words are 64 bits, aligned, read and written atomically; streams may write them too.
 */
#ifndef IPC_PAGE_H
#define IPC_PAGE_H

#include "base/error.h"
#include <stdint.h>

#define PAGE_WORDS 512 /* 4,096 bytes */

/* Words of the page of a process (written by it and its streams). */
enum process_word {
	WORD_READY = 0,	  /* how many times strew_agent_ready()'s stream has got there */
	WORD_PUBLISH = 1, /* the same for strew_trainer_publish() */
	WORD_STATE = 2,	  /* enum strew_group_state, as last heard */
	WORD_VERSION = 3, /* committed version, as last heard */
	WORD_UPDATE = 4,  /* serial of the last update heard of */
};

/* Words of the page of the broker (one a session, written by the broker). */
enum broker_word {
	WORD_GROUP_STATE = 0,	 /* 0: not registered */
	WORD_GROUP_VERSION = 1,	 /* committed */
	WORD_GROUP_SEQUENCE = 2, /* odd while the two above are being written */
	/* Serial of the last update of which live memory was, or may have been, written. It is
	 * there before the first byte. 0: the broker does not say. */
	WORD_WRITTEN = 3,
	/* 1: the session is over, and nothing of this broker touches the process's memory any more,
	 * nor ever will. Its process may live on: it serves others, or is started anew by exec. */
	WORD_QUIET = 4,
};

#define WRITTEN_NONE UINT64_MAX

struct page {
	volatile uint64_t *words; /* NULL: none */
	int fd;			  /* of a page of one's own, -1 otherwise */
};

int page_create(struct page *ret_page, struct error *err); /* zeroed, sealed, mapped for writing */
/* Maps the other side's page read-only. Takes nothing of fd. -EINVAL: no memfd, wrong size or
 * seals. */
int page_map(int fd, struct page *ret_page, struct error *err);
void page_finish(struct page *page); /* unmaps, closes its fd */

uint64_t page_load(const struct page *page, unsigned word);
void page_store(struct page *page, unsigned word, uint64_t value);

/* State and version of a group, as of one moment. */
void page_tell_group(struct page *page, uint64_t state, uint64_t version);
/* -EAGAIN: at each of some tries they were being written; their writer may have died there. */
int page_read_group(const struct page *page, uint64_t *ret_state, uint64_t *ret_version);

#endif
