/*
 * The broker put together: what its files do for each other, with what state.h holds. server.c owns
 * the loop and the listeners, clients.c the Unix socket, groups.c the groups, node.c this broker's
 * part in an update, lead.c the lead's, epoch.c the brokers and their communicator.
 */
#ifndef BROKER_SERVER_H
#define BROKER_SERVER_H

#include "broker/state.h"

/* server.c */
int server_create(
	const struct server_options *options, struct server **ret_server, struct error *err);
int server_run(struct server *server); /* until it is told to stop; returns the exit code */
/* It has stopped for the next of its kind to begin with nothing: see LIMIT_EPOCHS. */
bool server_starts_again(const struct server *server);
void server_count_epoch(struct server *server);
/* What it does: once, then again and again. A round waits until something is due. */
void server_start(struct server *server);
void server_round(struct server *server);
void server_destroy(struct server *server);
bool server_is_lead(const struct server *server);
/* accept has failed: with -EAGAIN because nobody waits, else for want of something. */
void server_accept_ended(struct server *server, int rc);
void server_fatal(struct server *server, const char *text); /* ends the process, code 1 */
/* The same at once, whatever the mover does, which may be in a driver that never returns. */
void server_abandon(struct server *server, const char *text);
bool server_abandoned(const struct server *server);

/* clients.c */
void clients_accept(void *data, uint32_t events);
void client_drop(struct client *client, const char *why);
void client_send(struct client *client, struct message *message);
void client_error(struct client *client, uint64_t serial, int code, const char *text);
void client_ok(struct client *client, uint64_t serial, uint64_t value);
/* Calls `hit` when that word of the client's page has the value; replaces an earlier watch. */
void client_watch(
	struct client *client, size_t word, uint64_t value, void (*hit)(struct watch *watch));
/* A job that has held the client (client->jobs) is over: it may be freed now. */
void client_job_done(struct client *client);
void clients_tick(struct server *server, uint64_t now);
uint64_t clients_due(const struct server *server);
void clients_drop_all(struct server *server);
void clients_release_due(struct server *server); /* the node has become idle */

/* room.c */
/* False, and a sentence with -E2BIG, if what this one registers is too much. */
bool room_check(const struct client *asking, struct error *err);
/* May one more connect? `*ret_looker`: but it may only look. Another that looks may be dropped for
 * it. */
bool room_for_client(struct server *server, bool *ret_looker);
/* To one that says hello: 0, or -E2BIG if it wants more than to look where that is all. */
int room_welcomes(const struct client *client, struct error *err);

/* groups.c */
int team_place(struct client *client, struct error *err); /* before mapping: is the place free? */
void team_join(struct client *client);			  /* after mapping */
void team_leave(struct client *client, bool lost);
void team_step(struct server *server, struct team *team, const struct group_event *event);
/* The last version that a CURRENT group of the model here holds; 0: none. */
uint64_t teams_version(struct server *server, const char *model);
/* The model's committed version has grown: groups that hold less are STALE. */
void teams_missed(struct server *server, const char *model);
/* A lead or broker that knows nothing of a version that a CURRENT group holds knows it now. */
void team_learn(struct server *server, const struct team *team);
struct team *team_next(struct server *server, struct team *after, const char *model);
void teams_free(struct server *server);

/* catchup.c: groups that have missed a version take it from a sibling here, between updates */
void catchup_look(struct server *server); /* in every round: begins, goes on, ends */
/* An update of that model wants to begin, of everything or of a subset. False: not yet, copies are
 * to end. */
bool catchup_yield(struct server *server, const char *model, bool whole);
bool catchup_quiet(const struct server *server);
/* Which replicas have one group in all: heard with go, and true of a version once it is committed.
 */
void catchup_go(struct server *server, const struct msg_decision *go);
void catchup_committed(struct server *server);
void catchup_free(struct team *team); /* at the end of the process, when the mover is gone */
uint64_t catchup_due(const struct server *server);

/* node.c: this broker's part */
void node_begin(struct server *server, const struct msg_begin *begin);
void node_go(struct server *server, const struct msg_decision *go);
void node_commit(struct server *server, const struct msg_decision *commit);
void node_abort(struct server *server, uint64_t serial, const char *text);
void node_doubt(struct server *server); /* the lead is gone */
/* Nothing of this broker reads the memory of its trainers any more in this update. */
void node_released(struct server *server);
/* A team has said what the node waits for. */
void node_said(struct server *server, struct team *team, enum group_action_type said,
	enum strew_outcome outcome);
/* Answers the lead if everything that it waits for has been said. */
void node_advance(struct server *server);
void node_copy(struct server *server, struct team *team);
void node_member_gone(struct server *server, struct team *team);
void node_forget(struct server *server);
void node_tick(struct server *server, uint64_t now);
uint64_t node_due(const struct server *server);

/* Frees a publication that no job and no update uses any more, after the mover has forgotten it. */
void publication_retire(struct server *server, struct publication *publication);

/* How many groups of that replica there are on all nodes, as far as the lead has met them. 0: it is
 * not known, as there are more of all replicas than a lead counts. */
static inline size_t groups_met(const struct msg_decision *go, uint32_t replica)
{
	size_t n = 0;

	for (size_t i = 0; i < go->nmet && go->nmet < LIMIT_REPORT_GROUPS; i++) {
		n += go->met[i] == replica;
	}
	return n;
}

/* recall.c: how far this broker got in the last update of a model, for the next lead */
void recall_begin(struct server *server); /* these six: of the node's update */
void recall_go(struct server *server, const struct msg_decision *go);
void recall_prepared(struct server *server);
bool recall_in_doubt(struct server *server); /* prepared was said, and no end of it was heard */
void recall_committed(struct server *server, const struct msg_decision *commit);
void recall_aborted(struct server *server);
void recall_worker(struct client *client); /* it has registered, and says what its memory holds */
void recall_forget(struct server *server, struct model *model);
void recalls_tell(struct server *server); /* to a lead that has been joined */
void recall_settled(struct server *server, const struct msg_settled *said);
/* Lead: what a member remembers. -EPROTO: drop it. */
int member_recall(struct member *member, const struct msg_recall *said, struct error *err);
void member_recalls_free(struct member *member);
void recalls_settle(struct server *server); /* something is known now that was not before */

/* settle.c: groups that hear late how an update has ended */
void settle_team(struct server *server, struct team *team, uint64_t update, uint64_t version,
	enum strew_outcome outcome);
void settle_copy(struct server *server, struct team *team);
void settle_yield(struct server *server, const char *model); /* to an update that begins */
void settle_tick(struct server *server, uint64_t now);
uint64_t settle_due(const struct server *server);

/* lead_hashes.c: false, and a sentence, if the node's differ from those that were said before. */
bool lead_hashes_agree(struct server *server, const struct model *model, uint32_t node,
	const struct msg_groups *answer, char text[LIMIT_TEXT_BYTES]);
void lead_hashes_forget(struct server *server);

/* models.c: what is published, and the trainer ranks */
struct model *model_find(struct server *server, const char *name, bool add);
/* The empty seat of that rank, of a model that may be new. -EINVAL, -EEXIST, -E2BIG. */
int seat_find(struct server *server, const struct msg_trainer *who, struct model **ret_model,
	struct error *err);
/* Lead: empties the seat, withdraws what is published, and aborts what still needs its memory. */
void seat_leave(struct server *server, struct model *model, uint32_t rank, bool released);
#define SEAT_WHERE_BYTES (ADDRESS_BYTES + 48)
/* " at node 1, broker x,", or "" of one that is here. */
void seat_where(const struct seat *seat, char *buf, size_t size);
int rank_place(struct client *client, struct error *err); /* before mapping */
void rank_mapped(struct client *client);		  /* after mapping */
void rank_gone(struct client *client);
void model_set(struct server *server, struct model *model, struct publication *publication);
void model_drop_publication(struct server *server, struct model *model);
/* At a broker that joined: the lead has withdrawn that manifest; and all, as a lead that is joined
 * says anew which stand. */
void model_undeclared(struct server *server, const char *name);
void models_undeclared(struct server *server);
void models_free(struct server *server);

/* What an update of that subset (0: everything) publishes; NULL: it is not known. */
static inline struct publication *model_publication(const struct model *model, uint32_t subset)
{
	if (!subset) {
		return model->publication;
	}
	return subset <= model->nsubsets ? model->subsets[subset - 1]->publication : NULL;
}

/* Parameters that no tensor covers keep their bytes, and are no error. */
static inline bool node_partial(const struct node *node)
{
	return (node->flags & STREW_PUBLISH_PARTIAL) || node->subset;
}

/* Has an update like that all tensors? Else it heals no group that another one has spoilt. */
static inline bool is_whole(uint32_t flags, uint32_t subset)
{
	return !subset && !(flags & STREW_PUBLISH_PARTIAL);
}

/* brought.c: what a partial version leaves out */
uint64_t brought_begin(struct model *model); /* lead: the base of what begins, if it is partial */
void brought_commit(struct model *model, uint64_t version); /* lead, before it is `committed` */
void brought_go(struct server *server, struct team *team);  /* the node's update writes it */
/* May it take the node's update? Else why not, into text. */
bool brought_enough(struct server *server, const struct team *team, char text[LIMIT_TEXT_BYTES]);

/* seen.c: a lead's memory of which groups there are, so that half a replica does not go on */
void seen_await(const struct server *server, struct model *model, uint64_t now); /* at begin */
void seen_commit(const struct server *server, struct model *model);
void seen_lost(const struct member *member); /* before the member itself is */
void seen_free(struct seen *seen);

/* subsets.c: tensors that are published by themselves */
/*
 * What a rank of any broker names. The answer to `serial` goes out when every rank has named its
 * part. Refused: a negative code, and nothing has changed.
 */
int subset_take(struct server *server, struct model *model, uint32_t rank,
	const struct msg_subset *said, uint64_t serial, struct error *err);
void lead_subset(struct client *client, const struct message *message);
/* Keeps what a rank names, in its seat; the numbers come in order. Other tensors for a number that
 * was named forget those behind it, the same ones nothing. */
int choices_keep(struct seat *seat, const struct manifest *declared, const struct msg_subset *said,
	struct error *err);
/* Of a number that was named, and bits as many as the declaration has. */
bool choices_same(const struct seat *seat, const struct msg_subset *said);
void choices_cut(struct seat *seat, uint32_t n); /* forgets those behind the first n */
void seat_finish(struct seat *seat);
void subsets_drop(struct server *server, struct model *model);
void lead_send_subsets(struct model *model, struct member *member);
/* At a broker that joined. */
int subset_chosen(struct server *server, const struct msg_chosen *said, struct error *err);

/* parts.c: an update in parts */
static inline bool node_in_parts(const struct node *node)
{
	return node->flags & PUBLISH_PARTS;
}
/* What a rank of any broker puts. Refused: a negative code, and nothing has changed. */
int lead_take_put(
	struct model *model, uint32_t rank, uint64_t version, uint32_t subset, struct error *err);
/* Makes that subset what the node moves next; until node_part_end(). */
int node_part_begin(struct server *server, uint32_t subset, struct error *err);
void node_part_end(struct server *server);

/* manifests.c: declarations become one manifest */
/* From the brokers of all ranks: whose memory is here, and where each box lies. -EPROTO: the
 * manifest is not what the trainers here have declared. */
int publication_bind(struct server *server, struct model *model, struct publication *publication,
	struct error *err);
void model_try_seal(struct server *server, struct model *model);
void lead_send_manifest(struct model *model, struct member *member);
/* The version of each model that was committed and is not published any more. */
void lead_send_committed(struct member *member);
/* `own`: whose rank is gone, and so knows; NULL: nobody's. */
void lead_send_undeclared(
	struct server *server, const struct model *model, const struct member *own);

/* members.c (lead): the trainer ranks of other brokers. Negative: drop the member. */
int member_part(struct member *member, const struct msg_part *part, struct error *err);
int member_declare(struct member *member, const struct message *message, struct error *err);
int member_undeclare(struct member *member, const struct message *message, struct error *err);
int member_publish(struct member *member, const struct message *message, struct error *err);
int member_put(struct member *member, const struct message *message, struct error *err);
int member_cancel(struct member *member, const struct message *message, struct error *err);
int member_subset(struct member *member, const struct message *message, struct error *err);
int member_done(struct member *member, const struct msg_rank_done *done, struct error *err);
void member_ranks_lost(struct member *member); /* before the member itself is */
/* The report for one rank there, if it has published; the message's serial is set. */
void member_report(struct seat *seat, const struct message *report);

/* ranks.c (a broker that joined): its own trainer ranks, and what its lead says of them */
void ranks_joined(struct server *server);
void ranks_declare_due(struct server *server); /* what was queued for the lead has been taken */
void ranks_link_down(struct server *server);
void ranks_declare(struct client *client);
void ranks_gone(struct client *client);
void ranks_subset(struct client *client, const struct message *message);
void ranks_publish(struct client *client, const struct message *message);
void ranks_put(struct client *client, const struct message *message);
void ranks_cancel(struct client *client, const struct message *message);
void ranks_released(struct server *server);  /* as node_released() */
void ranks_committed(struct server *server); /* the node begins its commit */
void ranks_node_idle(struct server *server);
/* 1 if the message answers a request of this file, else 0. Negative: the link is broken. */
int ranks_answer(struct server *server, const struct message *message, struct error *err);

/* lead.c: publishing and decisions */
void lead_rank_lost(struct server *server, struct model *model, uint32_t rank, bool released,
	const char *where);
void lead_publish(struct client *client, const struct message *message);
int publish_check(const struct msg_publish *publish, struct error *err); /* at any broker */
/* What a rank of any broker publishes. Refused: a negative code, and nothing has changed. */
int lead_take_publish(
	struct model *model, uint32_t rank, const struct msg_publish *publish, struct error *err);
void lead_stream_done(struct server *server, struct model *model, uint32_t rank);
void lead_put(struct client *client, const struct message *message);
void lead_cancel(struct client *client, const struct message *message);
/* A rank gives that version up, if update_check_cancel() says that it may. */
void lead_rank_cancels(struct server *server, struct model *model, uint32_t rank, uint64_t version,
	const char *where, const char *why);
/* A node's word about the update under way. */
void lead_answer(struct server *server, uint32_t node, enum message_type type,
	const struct msg_groups *answer);
void lead_released(struct server *server, uint64_t serial);
void lead_member_lost(struct server *server, uint32_t rank, const char *name);
void lead_ready(struct server *server);	     /* the epoch is settled: begin what is queued */
bool lead_busy(const struct server *server); /* an update is between begin and report */
void lead_tick(struct server *server, uint64_t now);
uint64_t lead_due(const struct server *server);

/* epoch.c and door.c (lead), and join.c (joiner) */
void members_accept(void *data, uint32_t events);
void member_send(struct member *member, struct message *message);
void member_refuse(struct member *member, uint64_t serial, const struct error *err);
struct member *member_by_rank(struct server *server, uint32_t rank);
void epoch_changed(struct server *server);
void epoch_tick(struct server *server, uint64_t now);
uint64_t epoch_due(const struct server *server);
void epoch_submit(struct server *server, const struct msg_epoch *epoch, int *data_fds);
void epoch_made(struct job *job);
void members_drop_all(struct server *server);
/* Those that an update has taken for lost; they join again if they live. */
void members_drop_lost(struct server *server, const bool lost[LIMIT_BROKERS]);
void join_start(struct server *server);
void join_tick(struct server *server, uint64_t now);
uint64_t join_due(const struct server *server);
void join_answer(struct server *server, enum message_type type, struct msg_groups *answer);
void join_epoch_made(struct server *server, struct job_epoch *job);
void join_stop(struct server *server);
/* To the lead, if there is a connection. */
void join_send(struct server *server, struct message *message);
bool join_waits(const struct server *server); /* something that was sent has not left yet */
void join_send_blob(struct server *server, const struct blob *blob, enum part_of of);
void join_fill(struct server *server, struct msg_join *ret_join);

/* missed.c: brokers whose groups scope=all cannot ask (lead) */
void missed_lost(const struct member *member); /* before the member itself is */
/* An epoch stands: who is new in it is missed no more. Before blame_none(), which makes it old. */
void missed_stand(struct server *server);
/* One that is missed and not about to come back, or NULL. */
const char *missed_name(struct server *server, uint64_t now);
bool missed_come_back(const struct server *server); /* does one start itself anew? */
void missed_tick(struct server *server, uint64_t now);
uint64_t missed_due(const struct server *server);

/* keys.c: the beginning of a connection between brokers. -EPERM: a key is there at one end only. */
int member_keyed(const struct member *member, const struct message *message, struct error *err);
void member_warn(const struct member *member, const char *why); /* it was refused */
int member_nonce(struct member *member, const struct msg_nonce *said, struct error *err);
int join_nonce(struct server *server, struct error *err);
int join_keys(struct server *server, const struct message *message, struct error *err);

/* server.c: says that the broker is ready, once */
void server_ready(struct server *server);

/* status.c */
void status_answer(struct client *client, uint64_t serial);

/* progress.c */
void progress_answer(struct client *client, uint64_t serial);

/* history.c: updates that have ended, into server->events */
void history_lead(struct server *server, const char *model, const struct msg_report *report);
void history_node(struct server *server, enum strew_outcome outcome, const char *text);
void history_catch(struct server *server, const struct team *team, uint64_t bytes);
void events_answer(struct client *client, const struct message *message);

/* sums.c: those of the node's update. Noted when a move has ended, kept if it is committed. */
void sums_note(struct server *server);
void sums_commit(struct server *server);
void sums_free(struct sums *sums); /* all of a list; NULL is fine */

/* explain.c */
void explain_answer(struct client *client, const struct message *message);

/* readback.c */
void layout_answer(struct client *client, const struct message *message);
void read_begin(struct client *client, const struct message *message);

#endif
