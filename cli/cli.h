/*
 * The subcommands of `strew` and what they share. Each takes its own arguments
 * (argv[0] is "strew NAME") and returns the program's exit code.
 */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include "ipc/messages.h"
#include <stdbool.h>

enum exit_code {
	EXIT_OK = 0,
	EXIT_RUNTIME = 1,
	EXIT_USAGE = 2,
	EXIT_NO_DEVICE = 3,
	EXIT_UNREACHABLE = 4,
};

int cmd_run(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_push(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_events(int argc, char **argv);
int cmd_explain(int argc, char **argv);
int cmd_verify(int argc, char **argv);

/* Is there an argument behind the options? None is wanted, and that is said. */
bool has_argument(int argc, char *const *argv);

struct conn;
int status_ask(struct conn *conn, struct message *ret_reply, struct error *err);
/* Until Ctrl-C (which ends the process with 0), or the broker goes. */
int status_watch(const char *socket, bool json);

/* What this strew takes at most, on stdout. */
void status_limits(bool json);

/* The status as JSON on stdout. */
void status_print_json(const struct msg_status_reply *status);

/* The first update that ended after that one; its number is 0 if there is none. */
int event_ask(struct conn *conn, uint64_t after, struct message *ret_event, struct error *err);
void event_print(const struct msg_event *event, bool json); /* on stdout */

/* Names in the words of the documentation, for numbers that came from a broker. */
const char *status_gate(uint32_t gate);
const char *status_apply(uint32_t apply);
const char *status_proof(uint32_t proof);

#endif
