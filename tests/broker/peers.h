/*
 * Those who play by the rules, through libstrew, and registrations that a test may spoil
 * before it sends them by ipc/. All tensors are matrices of 4-byte elements whose values follow
 * from name, version and place, so that every worker's memory can be checked.
 */
#ifndef BROKER_PEERS_H
#define BROKER_PEERS_H

#include "broker/play.h"
#include "strew/strew.h"

/* Rows [first, first + n) of the tensor: what a worker wants or a trainer rank has. */
struct rows {
	const char *tensor;
	enum strew_dtype dtype;
	uint64_t rows, cols, first, n;
};

#define PEER_ROWS 8
#define POISON 0xa5

/* Peers started while it is set have memory of malloc(), which is no memfd. */
extern bool peers_ordinary;

struct worker {
	bool ordinary;
	struct strew_agent *agent;
	uint32_t *memory; /* the rows behind one another, a guard of one row's length after each */
	size_t bytes;
	struct rows rows[PEER_ROWS];
	size_t nrows;
};

/* options.socket is filled in, serve_thread and a live gate are taken where no gate is said.
 * Returns strew_agent_register()'s code; the memory is poisoned. */
int worker_start(struct worker *worker, const struct broker *broker,
	struct strew_agent_options options, const struct rows *rows, size_t nrows);
void worker_stop(struct worker *worker);
/* Every row has the version's values, and nothing else was written. */
void worker_holds(const struct worker *worker, uint64_t version);
/* The same for those entries of `rows` whose bits are set; the others are poisoned. */
void worker_holds_some(const struct worker *worker, uint64_t version, unsigned entries);
/* The same with a version for each entry; 0: it is poisoned. */
void worker_holds_each(const struct worker *worker, const uint64_t *versions);
void worker_is_poisoned(const struct worker *worker);
/* The agent's next event, which must be of that type (and, of DONE, with that outcome). */
void worker_event(struct worker *worker, enum strew_event_type type, enum strew_outcome outcome);

struct trainer {
	bool ordinary;
	struct strew_trainer *trainer;
	uint32_t *memory;
	struct rows rows[PEER_ROWS];
	size_t nrows;
};

/* Returns strew_trainer_seal()'s code. */
int trainer_start(struct trainer *trainer, const struct broker *broker,
	struct strew_trainer_options options, const struct rows *rows, size_t nrows);
void trainer_stop(struct trainer *trainer);
void trainer_write(struct trainer *trainer, uint64_t version); /* the values, not the publishing */
/* Writes and publishes; the outcome of the report (to be finished) or a negative code. */
int trainer_publish(struct trainer *trainer, uint64_t version, unsigned flags, int timeout_ms,
	struct strew_report *ret_report);
/* The same where everybody must commit. */
void trainer_commits(struct trainer *trainer, uint64_t version);
/* The report of what was published; its outcome must be that, and its text holds the word. */
void trainer_reports(struct trainer *trainer, enum strew_outcome outcome, const char *word,
	struct strew_report *ret_report);
/* The same for one group of the report. */
void report_group(const struct strew_report *report, uint32_t replica, enum strew_outcome outcome,
	const char *word);

/* A registration or declaration to be sent by hand. */
struct draft {
	struct msg_register reg;    /* a worker's, members 1, live, direct */
	struct msg_trainer trainer; /* a trainer's */
	struct msg_allocation allocation;
	struct blob blob;
	int fd;
	bool is_trainer;
};

void draft_worker(struct draft *draft, const char *model, const struct rows *rows, size_t nrows);
/* The same, its parameters from `offset` on. */
void draft_worker_at(struct draft *draft, const char *model, uint64_t offset,
	const struct rows *rows, size_t nrows);
void draft_trainer(struct draft *draft, const char *model, uint32_t rank, const struct rows *rows,
	size_t nrows);
/* So many tensors of one element, with names so long. */
void draft_large(struct draft *draft, const char *model, size_t ntensors, unsigned name_bytes);
void draft_finish(struct draft *draft);
/* Opening, allocation, parts and seal; the descriptor is duplicated. */
void draft_send(struct raw *raw, const struct draft *draft);
/* The same, and its answer: MSG_REGISTERED or MSG_DECLARED. */
void draft_register(struct raw *raw, const struct draft *draft);
/* The same, refused with code and word. */
void draft_refused(struct raw *raw, const struct draft *draft, int code, const char *word);

#endif
