/* The ring of ended updates: what goes in comes out, in order, until 64 newer ones are there. */
#include "base/util.h"
#include "broker/events.h"
#include "support/test_main.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What update n was, drawn from its number alone. */
static void draw(uint64_t n, char model[LIMIT_MODEL_BYTES], struct msg_report *report,
	struct group_outcome groups[8])
{
	memset(report, 0, sizeof(*report));
	snprintf(model, LIMIT_MODEL_BYTES, "model-%llu", (unsigned long long)(n % 7));
	report->version = n * 11400714819323198485ull;
	report->outcome = STREW_OUTCOME_COMMITTED + (uint32_t)(n % 3);
	snprintf(report->text, sizeof(report->text), "sentence %llu", (unsigned long long)n);
	report->move_ns = n << 20;
	report->stages.wire_ns = n << 10;
	report->groups = groups;
	report->ngroups = n % 9;
	for (size_t i = 0; i < report->ngroups; i++) {
		memset(&groups[i], 0, sizeof(groups[i]));
		groups[i].node = (uint32_t)(n + i);
		groups[i].outcome = STREW_OUTCOME_SAT_OUT;
		snprintf(groups[i].text, sizeof(groups[i].text), "group %zu of %llu", i,
			(unsigned long long)n);
	}
}

static void add(struct events *events, uint64_t n)
{
	char model[LIMIT_MODEL_BYTES];
	struct group_outcome groups[8];
	struct msg_report report;

	draw(n, model, &report, groups);
	events_add(events, model, n % 2 ? "moving" : "", &report, 1000 + n);
	memset(groups, 0xa5, sizeof(groups)); /* it must have been copied */
}

static void assert_is(const struct msg_event *event, uint64_t n)
{
	char model[LIMIT_MODEL_BYTES];
	struct group_outcome groups[8];
	struct msg_report report;

	assert_non_null(event);
	draw(n, model, &report, groups);
	assert_true(event->number == n && event->unix_ms == 1000 + n);
	assert_string_equal(event->model, model);
	assert_string_equal(event->ended_in, n % 2 ? "moving" : "");
	assert_int_equal(event->report.ngroups, n % 9);
	if (report.ngroups) {
		assert_memory_equal(
			event->report.groups, groups, report.ngroups * sizeof(groups[0]));
	}
	report.groups = event->report.groups;
	assert_memory_equal(&event->report, &report, sizeof(report));
}

static void keeps_the_last_64(void **state)
{
	struct events *events;
	uint64_t total = 64 + 1 + test_random_below(500);

	(void)state;
	assert_int_equal(events_create(&events), 0);
	assert_null(events_after(events, 0));
	for (uint64_t n = 1; n <= total; n++) {
		uint64_t oldest = n > 64 ? n - 63 : 1, after = test_random_below(n + 2);
		const struct msg_event *event;

		add(events, n);
		assert_true(events_last(events) == n);
		event = events_after(events, after);
		if (after >= n) {
			assert_null(event);
		} else {
			assert_is(event, after + 1 > oldest ? after + 1 : oldest);
		}
	}
	/* All of them, as `strew events` asks. */
	for (uint64_t n = total - 63, after = 0; n <= total; n++, after = n - 1) {
		assert_is(events_after(events, after), n);
	}
	assert_null(events_after(events, total));
	assert_null(events_after(events, UINT64_MAX));
	events_destroy(events);
}

static void nothing_is_kept_without_one(void **state)
{
	(void)state;
	add(NULL, 1);
	events_begun(NULL, 5);
	assert_null(events_after(NULL, 0));
	assert_true(events_last(NULL) == 0 && events_begun_ns(NULL) == 0);
	events_destroy(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(keeps_the_last_64),
		cmocka_unit_test(nothing_is_kept_without_one),
	};

	return TEST_RUN(tests);
}
