/* What the files of the group's machine share: group.c, group_doubt.c, group_members.c. */
#ifndef BROKER_GROUP_INTERNAL_H
#define BROKER_GROUP_INTERNAL_H

#include "broker/group.h"

/* group.c */
void group_act(struct group_actions *actions, enum group_action_type type, uint32_t member,
	enum strew_outcome outcome);
void group_act_all(struct group *group, struct group_actions *actions, enum group_action_type type,
	enum strew_outcome outcome);
void group_set_text(struct group *group, const char *text);
/* Ends the update for the group: tells its members, answers their resumes. */
void group_finish(struct group *group, struct group_actions *actions, enum strew_outcome outcome);
/* Written in part, every member: it stays so when siblings come and go. */
void group_make_dirty(struct group *group);
bool group_gate_held(const struct group *group);
/* Tells the lead that the group is out, with the message that the lead waits for. */
void group_go_out(struct group *group, struct group_actions *actions, const char *text);
void group_ask_checks(struct group *group, struct group_actions *actions);
/* Live memory changes only at the commit: by our copy, by the members' own, or by both. */
bool group_copies_at_commit(const struct group *group);
void group_commit(struct group *group, struct group_actions *actions);
void group_committed(struct group *group, struct group_actions *actions);
/* The lead gave up, or went on without us: nothing of this update is to be kept. */
void group_abort(
	struct group *group, const struct group_event *event, struct group_actions *actions);

/* group_doubt.c */
void group_end_doubt(struct group *group);
/* All hold the same, and have missed at most the same update, if that was committed. */
struct group_doubt group_joined_doubt(const struct group *group);
/* The memory is as it was registered, or the gate is held: what is missing still? */
void group_settle(struct group *group, struct group_actions *actions);
void group_settled(
	struct group *group, const struct group_event *event, struct group_actions *actions);
void group_to_doubt(struct group *group, struct group_actions *actions);
void group_missed(struct group *group, const struct group_event *event);

/* group_members.c */
void group_join(struct group *group, const struct group_event *event);
void group_gone(
	struct group *group, const struct group_event *event, struct group_actions *actions);

#endif
