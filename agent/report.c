/* Reports: one block of memory holds the groups and behind them all strings. */
#include "agent/trainer.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_S 1e9

int report_check(const struct msg_report *message, struct error *err)
{
	if (message->outcome > STREW_OUTCOME_LOST) {
		return error_set(err, -EPROTO, "a report with outcome %u", message->outcome);
	}
	for (size_t i = 0; i < message->ngroups; i++) {
		const struct group_outcome *group = &message->groups[i];

		if (group->outcome > STREW_OUTCOME_LOST || group->state < STREW_GROUP_FORMING ||
			group->state > STREW_GROUP_LOST) {
			return error_set(err, -EPROTO,
				"a report of a group with outcome %u and state %u", group->outcome,
				group->state);
		}
	}
	return 0;
}

static const char *put_string(char **at, const char *text)
{
	size_t len = strlen(text) + 1;
	char *put = *at;

	memcpy(put, text, len);
	*at += len;
	return put;
}

int report_make(
	const struct msg_report *message, struct strew_report *ret_report, struct error *err)
{
	size_t bytes = message->ngroups * sizeof(*ret_report->groups) + strlen(message->text) + 1;
	struct strew_report report = {
		.version = message->version,
		.outcome = (enum strew_outcome)message->outcome,
		.tensors = message->tensors,
		.unwanted = message->unwanted,
		.bytes = message->bytes,
		.wire_bytes = message->wire_bytes,
		.wait_s = (double)message->wait_ns / NS_PER_S,
		.accept_s = (double)message->accept_ns / NS_PER_S,
		.move_s = (double)message->move_ns / NS_PER_S,
		.commit_s = (double)message->commit_ns / NS_PER_S,
		.gather_s = (double)message->stages.gather_ns / NS_PER_S,
		.local_s = (double)message->stages.local_ns / NS_PER_S,
		.wire_s = (double)message->stages.wire_ns / NS_PER_S,
		.scatter_s = (double)message->stages.scatter_ns / NS_PER_S,
		.total_s = (double)message->total_ns / NS_PER_S,
		.ngroups = message->ngroups,
	};
	char *strings;

	for (size_t i = 0; i < message->ngroups; i++) {
		bytes += strlen(message->groups[i].text) + 1;
	}
	report.groups = malloc(bytes);
	if (!report.groups) {
		return error_set(
			err, -ENOMEM, "no memory for a report of %zu groups", message->ngroups);
	}
	strings = (char *)(report.groups + message->ngroups);
	report.text = put_string(&strings, message->text);
	for (size_t i = 0; i < message->ngroups; i++) {
		const struct group_outcome *group = &message->groups[i];

		report.groups[i] = (struct strew_group_report){
			.node = group->node,
			.replica = group->replica,
			.part = group->part,
			.outcome = (enum strew_outcome)group->outcome,
			.state = (enum strew_group_state)group->state,
			.text = put_string(&strings, group->text),
		};
	}
	*ret_report = report;
	return 0;
}

void strew_report_finish(struct strew_report *report)
{
	if (report) {
		free(report->groups);
		memset(report, 0, sizeof(*report));
	}
}
