/*
 * How an update ended whose lead is gone: every history of a lead and three brokers, with every
 * subset of them there to tell it, judged and compared with what really happened.
 */
#include "broker/recovery.h"
#include "support/test_main.h"
#include <string.h>

#define LEAD 100u
#define JOINERS 3u
#define NUMBER 77u
#define VERSION 5u

/* What really happened. */
enum decision { NONE, ABORT, COMMIT };
enum lead_node { NO_GROUPS, NOT_BEGUN, WROTE };
enum presence { BACK, GONE, STARTED_AGAIN };

struct history {
	enum decision decision;
	bool prepared[JOINERS], heard[JOINERS];
	enum lead_node own;
	/* and who is there now */
	enum presence now[JOINERS];
	bool workers; /* those of the lead's node have come to the new lead */
	bool lives;   /* it is the same lead still, and others were cut off */
};

static uint64_t id(unsigned joiner)
{
	return LEAD + 1 + joiner;
}

/* Replica n is joiner n's, the last one the lead's. */
static void fill(struct recall *recall, enum recall_how how, unsigned joiner)
{
	memset(recall, 0, sizeof(*recall));
	recall->update = NUMBER;
	recall->version = VERSION;
	recall->how = how;
	if (how != RECALL_SEEN) {
		recall->nbrokers = JOINERS + 1;
		for (unsigned i = 0; i <= JOINERS; i++) {
			recall->brokers[i] = LEAD + i;
		}
	}
	if (how == RECALL_COMMITTED) {
		for (unsigned i = 0; i <= JOINERS; i++) {
			recall_add(recall, i);
		}
	} else if (how == RECALL_PREPARED || how == RECALL_SEEN) {
		recall_add(recall, joiner);
	}
}

static bool is_possible(const struct history *history)
{
	for (unsigned i = 0; i < JOINERS; i++) {
		if (history->decision == COMMIT && !history->prepared[i]) {
			return false;
		}
		if (history->decision == NONE && history->heard[i]) {
			return false;
		}
	}
	/* A lead that lives has decided by the time that it is asked. */
	return (history->decision == COMMIT || history->own != WROTE) &&
	       !(history->lives && (history->decision == NONE || history->workers));
}

static enum recall_how how_of(const struct history *history, unsigned joiner)
{
	if (history->heard[joiner]) {
		return history->decision == COMMIT ? RECALL_COMMITTED : RECALL_ABORTED;
	}
	return history->prepared[joiner] ? RECALL_PREPARED : RECALL_ABORTED;
}

struct told {
	struct recall recalls[JOINERS + 4];
	struct recovery_word words[JOINERS + 4];
	size_t n;
};

static void tell(struct told *told, uint64_t broker, enum recall_how how, unsigned joiner)
{
	fill(&told->recalls[told->n], how, joiner);
	told->words[told->n] = (struct recovery_word){broker, &told->recalls[told->n]};
	told->n++;
}

static void gather(const struct history *history, struct told *told)
{
	told->n = 0;
	for (unsigned i = 0; i < JOINERS; i++) {
		enum recall_how how = how_of(history, i);

		if (history->now[i] == BACK) {
			tell(told, id(i), how, i);
		} else if (history->now[i] == STARTED_AGAIN && how == RECALL_COMMITTED) {
			/* Its workers hold the version. */
			tell(told, 500 + i, RECALL_SEEN, i);
		}
	}
	if (history->lives) {
		tell(told, LEAD, history->decision == COMMIT ? RECALL_COMMITTED : RECALL_ABORTED,
			JOINERS);
	}
	if (history->own == WROTE && history->workers) {
		tell(told, 999, RECALL_SEEN, JOINERS);
	}
	/* Of another update, by one of those; of this one, by one that was not there. */
	tell(told, id(0), RECALL_COMMITTED, 0);
	told->recalls[told->n - 1].update = NUMBER + 1;
	tell(told, 12345, RECALL_ABORTED, 0);
}

/* What may be concluded, by what really happened and who is there. */
static enum recall_how expected(const struct history *history, bool untouched)
{
	bool all_back = true, prepared = true, seen = false;
	bool committed = history->lives && history->decision == COMMIT;
	bool aborted = history->lives && history->decision == ABORT;

	for (unsigned i = 0; i < JOINERS; i++) {
		enum recall_how how = how_of(history, i);
		bool back = history->now[i] == BACK;

		all_back = all_back && back;
		prepared = prepared && how == RECALL_PREPARED;
		committed = committed || (back && how == RECALL_COMMITTED);
		aborted = aborted || (back && how == RECALL_ABORTED);
		seen = seen || (history->now[i] == STARTED_AGAIN && how == RECALL_COMMITTED);
	}
	seen = seen || (history->own == WROTE && history->workers);
	if (committed || seen) {
		return committed ? RECALL_COMMITTED : RECALL_SEEN;
	}
	return aborted || (all_back && prepared && untouched) ? RECALL_ABORTED : 0;
}

static bool anybody_applied(const struct history *history)
{
	bool applied = history->own == WROTE;

	for (unsigned i = 0; i < JOINERS; i++) {
		applied = applied || (history->decision == COMMIT && history->heard[i]);
	}
	return applied;
}

static unsigned check(const struct history *history)
{
	bool untouched =
		!history->lives &&
		(history->own == NO_GROUPS || (history->own == NOT_BEGUN && history->workers));
	struct recall asked, verdict;
	unsigned judged = 0;
	struct told told;

	gather(history, &told);
	for (unsigned i = 0; i < JOINERS; i++) {
		enum recall_how right = expected(history, untouched);
		bool known;

		if (history->now[i] != BACK || how_of(history, i) != RECALL_PREPARED) {
			continue;
		}
		judged++;
		fill(&asked, RECALL_PREPARED, i);
		known = recovery_judge(&asked, told.words, told.n, untouched, &verdict);
		assert_int_equal(known, right != 0);
		if (!known) {
			continue;
		}
		assert_int_equal(verdict.how, right);
		assert_true(verdict.update == NUMBER && verdict.version == VERSION);
		/* The two that must never be. */
		assert_true(verdict.how == RECALL_ABORTED || history->decision == COMMIT);
		assert_true(verdict.how != RECALL_ABORTED || !anybody_applied(history));
		assert_true(verdict.how != RECALL_ABORTED || !history->lives ||
			    history->decision == ABORT);
		/* A commit is this broker's too, as all of its replica is here. */
		assert_true(verdict.how == RECALL_ABORTED || recall_has(&verdict, i));
	}
	return judged;
}

static void test_every_history(void **state)
{
	unsigned judged = 0;

	(void)state;
	for (unsigned n = 0; n < 3 * 8 * 8 * 3 * 27 * 4; n++) {
		struct history history = {.decision = (enum decision)(n % 3),
			.own = (enum lead_node)(n / 3 % 3),
			.workers = n / 9 % 2,
			.lives = n / 18 % 2};
		unsigned rest = n / 36;

		for (unsigned i = 0; i < JOINERS; i++, rest /= 3) {
			history.now[i] = (enum presence)(rest % 3);
		}
		for (unsigned i = 0; i < JOINERS; i++, rest /= 2) {
			history.prepared[i] = rest % 2;
		}
		for (unsigned i = 0; i < JOINERS; i++, rest /= 2) {
			history.heard[i] = rest % 2;
		}
		if (is_possible(&history)) {
			judged += check(&history);
		}
	}
	assert_true(judged > 1000);
}

/* Whatever is said, by whom and in which order: contradictions are never acted upon. */
static void test_every_answer(void **state)
{
	(void)state;
	/* Of each joiner: nothing, or one of the four; of the lead's workers: nothing, or that they
	 * saw it. */
	for (unsigned n = 0; n < 5 * 5 * 5 * 2 * 2; n++) {
		unsigned how[JOINERS] = {n % 5, n / 5 % 5, n / 25 % 5};
		bool seen = n / 125 % 2, untouched = n / 250, known;
		unsigned count[5] = {0};
		struct recall asked, verdict, back;
		struct told told = {.n = 0};

		for (unsigned i = 0; i < JOINERS; i++) {
			count[how[i]]++;
			if (how[i]) {
				tell(&told, id(i), (enum recall_how)how[i], i);
			}
		}
		if (seen) {
			tell(&told, 999, RECALL_SEEN, JOINERS);
		}
		seen = seen || count[RECALL_SEEN];
		fill(&asked, RECALL_PREPARED, 0);
		known = recovery_judge(&asked, told.words, told.n, untouched, &verdict);
		if (count[RECALL_ABORTED] && (count[RECALL_COMMITTED] || seen)) {
			assert_false(known);
		} else if (count[RECALL_COMMITTED] || seen) {
			assert_true(known);
			assert_int_equal(verdict.how,
				count[RECALL_COMMITTED] ? RECALL_COMMITTED : RECALL_SEEN);
		} else {
			assert_int_equal(
				known, count[RECALL_ABORTED] ||
					       (untouched && count[RECALL_PREPARED] == JOINERS));
			assert_true(!known || verdict.how == RECALL_ABORTED);
		}
		/* In the other order the same. */
		for (size_t i = 0; i < told.n / 2; i++) {
			struct recovery_word word = told.words[i];

			told.words[i] = told.words[told.n - 1 - i];
			told.words[told.n - 1 - i] = word;
		}
		assert_int_equal(
			recovery_judge(&asked, told.words, told.n, untouched, &back), known);
		assert_true(
			!known || (back.how == verdict.how && back.nreplicas == verdict.nreplicas));
	}
}

static void test_replicas(void **state)
{
	struct recall asked, verdict;
	struct told told = {.n = 0};

	(void)state;
	fill(&asked, RECALL_PREPARED, 0);
	/* Those that were seen, and those that are all the asked one's. */
	tell(&told, 999, RECALL_SEEN, 7);
	tell(&told, 998, RECALL_SEEN, 8);
	assert_true(recovery_judge(&asked, told.words, told.n, false, &verdict));
	assert_int_equal(verdict.how, RECALL_SEEN);
	assert_int_equal(verdict.nreplicas, 3);
	assert_true(recall_has(&verdict, 7) && recall_has(&verdict, 8) && recall_has(&verdict, 0));
	/* Who was seen to commit is in no commit that was heard: somebody is wrong. */
	tell(&told, id(1), RECALL_COMMITTED, 1);
	assert_false(recovery_judge(&asked, told.words, told.n, false, &verdict));
	/* Two commits of one update. */
	told.n = 0;
	tell(&told, id(1), RECALL_COMMITTED, 1);
	tell(&told, id(2), RECALL_COMMITTED, 2);
	assert_true(recovery_judge(&asked, told.words, told.n, false, &verdict));
	assert_int_equal(verdict.nreplicas, JOINERS + 1);
	told.recalls[1].nreplicas--;
	assert_false(recovery_judge(&asked, told.words, told.n, false, &verdict));
}

static void test_what_does_not_count(void **state)
{
	struct recall asked, verdict;
	struct told told = {.n = 0};

	(void)state;
	fill(&asked, RECALL_PREPARED, 0);
	for (unsigned i = 0; i < JOINERS; i++) {
		tell(&told, id(i), RECALL_PREPARED, i);
	}
	assert_true(recovery_judge(&asked, told.words, told.n, true, &verdict));
	assert_false(recovery_judge(&asked, told.words, told.n, false, &verdict));
	/* A lead alone with its workers has no brokers to be asked; who knows none decides nothing.
	 */
	asked.nbrokers = 1;
	assert_false(recovery_judge(&asked, told.words, told.n, true, &verdict));
	asked.nbrokers = 0;
	assert_false(recovery_judge(&asked, told.words, told.n, true, &verdict));
	fill(&asked, RECALL_PREPARED, 0);
	/* The same serial with another version is another update; an unknown one is the same. */
	told.recalls[2].version = VERSION + 1;
	assert_false(recovery_judge(&asked, told.words, told.n, true, &verdict));
	told.recalls[2].version = 0;
	assert_true(recovery_judge(&asked, told.words, told.n, true, &verdict));
	/* Twice the same broker is not two. */
	told.words[2].broker = id(1);
	assert_false(recovery_judge(&asked, told.words, told.n, true, &verdict));
	/* A list that is full takes no more, and nothing twice. */
	for (uint32_t i = 0; i < 2 * LIMIT_REPORT_GROUPS; i++) {
		recall_add(&asked, i);
		recall_add(&asked, i);
	}
	assert_int_equal(asked.nreplicas, LIMIT_REPORT_GROUPS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_history),
		cmocka_unit_test(test_every_answer),
		cmocka_unit_test(test_replicas),
		cmocka_unit_test(test_what_does_not_count),
	};

	return TEST_RUN(tests);
}
