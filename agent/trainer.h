/*
 * The trainer's face from inside. trainer.c has opening, declaring and sealing,
 * trainer_publish.c the updates, report.c turns a message into a strew_report.
 */
#ifndef AGENT_TRAINER_H
#define AGENT_TRAINER_H

#include "agent/session.h"
#include "gpu/export.h"
#include "plan/manifest.h"
#include <strew/trainer.h>

enum trainer_stage {
	TRAINER_DECLARING,
	TRAINER_SEALING, /* all was sent; the answer is awaited */
	TRAINER_SEALED,
	TRAINER_REFUSED,
};

/* A declared box, beside manifest.boxes of the same index. */
struct held_memory {
	const void *data;
	uint64_t span_bytes;
};

/* An update in parts, from open to close; zeros: none. */
struct trainer_parts {
	bool open;
	bool taken; /* the first part was: the broker knows of the update */
	uint64_t version;
	unsigned flags;
	int timeout_ms;
	struct error refused; /* the answer to the last put, until wait_released tells it */
};

struct strew_trainer {
	struct agent_session session;
	struct msg_trainer who;
	enum trainer_stage stage;
	bool accepted;		  /* some broker has sealed it */
	struct manifest manifest; /* never sealed: this rank may hold only a part */
	struct source *sources;	  /* one a box */
	struct held_memory *memory;
	size_t cap_sources, cap_memory;
	struct export_set *set;
	struct export_page *words;
	struct agent_request request;	 /* seal */
	uint8_t *subsets[LIMIT_SUBSETS]; /* a bit for each tensor of the manifest; owned */
	uint32_t nsubsets;
	uint8_t *subset_late;  /* of the next one, if the other ranks were late; owned */
	uint32_t subsets_told; /* how many of them this broker knows */
	/* the update that was published last */
	struct agent_request publish; /* cleared when its answer was looked at */
	uint64_t word_count;	      /* what the page's publish word gets to */
	uint64_t version;
	bool publishing;		/* published, neither refused nor reported to the user */
	uint64_t published_ns, took_ns; /* until it was released; of the last one, 0: not known */
	bool lent;			/* the memory is read, or may be */
	bool released;			/* released was heard, and no wait has told the user */
	struct message report;		/* valid if reported */
	bool reported;
	struct error refused; /* the broker's answer to publish, until a wait_report tells it */
	struct trainer_parts parts;
};

/* agent_handler of trainers. */
int trainer_handle(void *data, struct message *message, struct error *err);

/* Names to this broker the subsets that one before it knew. */
int trainer_tell_subsets(struct strew_trainer *trainer, uint64_t deadline, struct error *err);
void trainer_free_subsets(struct strew_trainer *trainer);

/* trainer_publish.c, for trainer_parts.c: may that be published now? */
int trainer_check_publish(struct strew_trainer *trainer, uint32_t subset, uint64_t version,
	unsigned flags, int timeout_ms, struct error *err);
int trainer_send_publish(struct strew_trainer *trainer, uint32_t subset, uint64_t base,
	uint64_t version, void *stream, unsigned flags, int timeout_ms, struct error *err);
int trainer_mark(struct strew_trainer *trainer, void *stream, struct error *err);
/* Turns an answer that has come into what the waits look at; what they look at makes news. */
void trainer_look(struct strew_trainer *trainer);
void trainer_signal(struct strew_trainer *trainer);

/* Forgets the update that was published last; nothing reads the memory any more. */
void trainer_forget(struct strew_trainer *trainer);

/* 0: the memory is free; -ETIMEDOUT: still lent; any other error: free, and the update failed so.
 */
int trainer_wait_released(struct strew_trainer *trainer, uint64_t deadline, struct error *err);

/* -EPROTO if a number in it has no meaning. */
int report_check(const struct msg_report *message, struct error *err);
/* Fills a report, of a checked message, that owns its strings. -ENOMEM. */
int report_make(
	const struct msg_report *message, struct strew_report *ret_report, struct error *err);

#endif
