/*
 * Memory, and what may be done to it when: what the mover reads of the trainer ranks, and what it
 * and the workers write. A worker's memory is in part written from the first byte of an update on
 * until every cell that this update brings is whole.
 */
#include "tests/explore/world.h"
#include <string.h>

/* Those of which the worker itself copies what came into their twins. */
#define PULLED_CELLS (ALL_HALVES << HALVES)

uint8_t cells_of(unsigned g, unsigned m, uint8_t halves)
{
	bool pulls = config.pulls[g] >> m & 1;

	return (uint8_t)(halves | (pulls ? halves << HALVES : 0));
}

/* The mover of a node reads the memory of the ranks there: of an update, or one of its parts. */
void job_reads(const struct w_job *job, unsigned n)
{
	for (unsigned r = 0; r < config.nranks; r++) {
		const struct w_rank *rank = &now->rank[r];

		if (config.rank_node[r] != n || (job->gone >> r & 1)) {
			continue;
		}
		if (!rank->lent || rank->publishing != now->content_of[job->serial % SERIALS] ||
			rank->memory != job->part) {
			say_violation("a move reads trainer memory that is not lent to it");
		}
	}
}

static void put_content(uint8_t to[CELLS], uint8_t cells, uint8_t content)
{
	for (unsigned i = 0; i < CELLS; i++) {
		to[i] = cells >> i & 1 ? content : to[i];
	}
}

void write_live(unsigned g, unsigned m, const struct w_write *write, uint8_t cells, bool whole)
{
	struct w_worker *worker = &now->worker[g][m];

	if (worker->stage == W_NEW) {
		say_violation("memory was written whose withdrawal was acknowledged");
	}
	if (config.gate[g] == STREW_GATE_HELD && worker->running && worker->stage != W_DEAD) {
		say_violation("live memory is written while the engine runs");
	}
	worker->fresh = 0;
	if (worker->touched != write->serial) {
		worker->todo |= cells_of(g, m, write->brings);
		worker->touched = write->serial;
	}
	worker->todo |= cells;
	for (unsigned c = 0; c < CELLS && whole; c++) {
		if (cells >> c & 1) {
			worker->todo &= (uint8_t) ~(1u << c);
			worker->content[c] = write->content[c % HALVES];
		}
	}
}

static struct w_write write_of(uint8_t serial)
{
	uint8_t content = now->content_of[serial % SERIALS];

	return (struct w_write){.serial = serial,
		.brings = now->halves_of[serial % SERIALS],
		.content = {content, content}};
}

static bool is_staged(const struct w_worker *worker, uint8_t cells, uint8_t content)
{
	for (unsigned i = 0; i < CELLS; i++) {
		if ((cells >> i & 1) &&
			(!(worker->whole >> i & 1) || worker->shadow[i] != content)) {
			return false;
		}
	}
	return true;
}

static void move_writes(const struct w_job *job, unsigned g, unsigned m, bool whole)
{
	struct w_worker *worker = &now->worker[g][m];
	uint8_t halves = job->part ? (uint8_t)(1u << (job->part - 1))
				   : now->halves_of[job->serial % SERIALS];
	uint8_t cells = cells_of(g, m, halves);
	uint8_t staged = config.apply[g] == STREW_APPLY_STAGED ? cells : cells & PULLED_CELLS;
	const struct w_write write = write_of(job->serial);

	if (staged & PULLED_CELLS && worker->applying == APPLY_BEGUN) {
		say_violation("a twin is written while its owner copies out of it");
	}
	worker->whole &= (uint8_t)~staged;
	if (whole) {
		worker->whole |= staged;
		put_content(worker->shadow, staged, now->content_of[job->serial % SERIALS]);
	}
	if (cells & ~staged) {
		write_live(g, m, &write, (uint8_t)(cells & ~staged), whole);
	}
}

/* What the broker copies; twins are their owners' to copy. */
static void commit_writes(const struct w_job *job, unsigned g, unsigned m, bool whole)
{
	uint8_t cells = cells_of(g, m, now->halves_of[job->serial % SERIALS]) & ALL_HALVES;
	const struct w_write write = write_of(job->serial);

	if (config.apply[g] != STREW_APPLY_STAGED) {
		return;
	}
	if (!is_staged(&now->worker[g][m], cells, now->content_of[job->serial % SERIALS])) {
		say_violation("a commit copies a shadow that is not whole");
	}
	write_live(g, m, &write, cells, whole);
}

void job_writes(const struct w_job *job, bool whole)
{
	if (job->kind == JOB_CATCH) {
		catch_writes(job, whole);
		return;
	}
	for (unsigned g = 0; g < config.ngroups; g++) {
		for (unsigned m = 0; m < config.members[g]; m++) {
			if (!(job->workers & (1u << (g * MEMBERS + m)))) {
				continue;
			}
			if (job->kind == JOB_COMMIT || job->kind == JOB_SETTLE) {
				commit_writes(job, g, m, whole);
			} else {
				move_writes(job, g, m, whole);
			}
		}
	}
}

void worker_writes(unsigned g, unsigned m, bool whole)
{
	struct w_worker *worker = &now->worker[g][m];
	struct w_write write;

	if (worker->apply_cells != cells_of(g, m, now->halves_of[worker->apply_update % SERIALS]) >>
					   HALVES << HALVES) {
		say_violation("a worker is told to copy other tensors than the update brings");
	}
	if (!is_staged(
		    worker, worker->apply_cells, now->content_of[worker->apply_update % SERIALS])) {
		say_violation("a worker copies out of a twin that is not whole");
	}
	write = write_of(worker->apply_update);
	write_live(g, m, &write, worker->apply_cells, whole);
}
