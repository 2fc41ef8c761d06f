/* What node.c, node_teams.c and node_jobs.c share. */
#ifndef BROKER_NODE_INTERNAL_H
#define BROKER_NODE_INTERNAL_H

#include "broker/server.h"

/* Tells the lead of every group; code and text if the whole broker cannot go on. */
void node_answer(struct server *server, enum message_type type, int code, const char *text);

/* Those of the model that stand take part; of the others the lead hears why they do not. */
void node_collect_teams(struct server *server, const char *model);
void node_forget_crews(struct node *node);

/* The groups in that phase become those of the next job. */
void node_gather(struct node *node, enum group_phase phase);

/* A part has moved, or has failed to: tells the lead, and waits for the next go. */
void node_part_moved(struct server *server, int code, const char *text);

void node_start_plan(struct server *server);
void node_start_move(struct server *server);
void node_start_commit(struct server *server);

#endif
