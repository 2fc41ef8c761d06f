/*
 * The broker's life: open the backend, the mover, the sockets; run the loop with
 * everybody's deadlines; drain on SIGTERM (finish the update under way, refuse
 * new ones), leave at once on the second.
 */
#include "broker/server.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "wire/key_file.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

bool server_is_lead(const struct server *server)
{
	return !server->options.join;
}

void server_fatal(struct server *server, const char *text)
{
	log_error("%s", text);
	server->exit_code = 1;
	server->stop = true;
}

void server_abandon(struct server *server, const char *text)
{
	server_fatal(server, text);
	server->abandoned = true;
}

bool server_abandoned(const struct server *server)
{
	return server->abandoned;
}

static void notify_systemd(const char *text)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t len = path ? strlen(path) : 0;
	int fd;

	if (len == 0 || len >= sizeof(address.sun_path)) {
		return;
	}
	memcpy(address.sun_path, path, len);
	if (path[0] == '@') {
		address.sun_path[0] = '\0';
	}
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		return;
	}
	if (sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&address,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) < 0) {
		log_warn("cannot notify the service manager: %s", strerror(errno));
	}
	close(fd);
}

void server_ready(struct server *server)
{
	static const char text[] = "READY=1\n";

	if (server->ready) {
		return;
	}
	server->ready = true;
	log_info("ready at %s", server->socket_path);
	notify_systemd("READY=1");
	if (server->options.ready_fd >= 0) {
		if (write(server->options.ready_fd, text, sizeof(text) - 1) < 0) {
			log_warn("cannot write to --ready-fd: %s", strerror(errno));
		}
		fd_close(&server->options.ready_fd);
	}
}

static void on_mover(void *data, uint32_t events)
{
	struct server *server = data;

	(void)events;
	mover_reap(server->mover);
}

static void on_broken(void *data, const char *text)
{
	server_abandon(data, text);
}

static void on_signal(void *data, uint32_t events)
{
	struct server *server = data;
	struct signalfd_siginfo info;

	(void)events;
	while (read(server->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (server->draining) {
			log_warn("stopping at once");
			server->stop = true;
		}
		server->draining = true;
	}
}

static int open_signals(struct server *server, struct error *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	server->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return server->signal_fd < 0 ? error_set(err, -errno, "signalfd: %s", strerror(errno)) : 0;
}

/* Every chunk of an expandable segment is a descriptor for a moment. */
static void raise_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static int open_backend(struct server *server, struct error *err)
{
	struct moves_options options = {.device = server->options.device,
		.slot_bytes = server->options.slot_bytes,
		.slots = server->options.slots,
		.pinned_shadows = server->options.pinned_shadows};
	int rc = gpu_open(server->options.backend, &server->gpu, err);

	if (rc) {
		return rc;
	}
	if (server->options.device && gpu_info(server->gpu)->kind != GPU_CUDA) {
		return error_set(err, -ENODEV, "--device %.60s: there is no GPU here",
			server->options.device);
	}
	if (gpu_info(server->gpu)->kind == GPU_CUDA) {
		rc = gpu_find(server->gpu, server->options.device, server->uuid, err);
		if (rc) {
			return rc;
		}
	}
	if (gpu_info(server->gpu)->kind == GPU_CUDA &&
		(server->options.listen || server->options.join)) {
		rc = nccl_open(err);
		if (rc) {
			return rc;
		}
	}
	options.gpu = server->gpu;
	rc = moves_create(&options, &server->moves);
	rc = rc ? rc : events_create(&server->events);
	if (rc) {
		return error_set(err, rc, "out of memory");
	}
	return mover_create(on_broken, server, &server->mover, err);
}

static int open_sockets(struct server *server, struct error *err)
{
	uint16_t port;
	int rc = socket_path(server->options.socket, server->socket_path, err);

	if (rc == 0) {
		rc = socket_listen_unix(server->socket_path, &server->listener, err);
	}
	if (rc == 0 && server->options.listen) {
		rc = socket_listen_tcp(server->options.listen, server->options.key_file != NULL,
			&server->tcp_listener, &port, err);
		if (rc == 0) {
			log_info("brokers %s may join at port %u",
				server->options.key_file ? "with the key" : "of this host", port);
		}
	}
	return rc;
}

static int open_loop(struct server *server, struct error *err)
{
	int rc = loop_create(LOOP_AUTO, &server->loop);

	if (rc == 0) {
		rc = loop_add(server->loop, server->listener, EPOLLIN, clients_accept, server,
			&server->listener_source);
	}
	if (rc == 0 && server->tcp_listener >= 0) {
		rc = loop_add(server->loop, server->tcp_listener, EPOLLIN, members_accept, server,
			&server->tcp_source);
	}
	if (rc == 0) {
		rc = loop_add(server->loop, mover_fd(server->mover), EPOLLIN, on_mover, server,
			&server->mover_source);
	}
	if (rc == 0) {
		rc = loop_add(server->loop, server->signal_fd, EPOLLIN, on_signal, server,
			&server->signal_source);
	}
	if (rc) {
		return error_set(err, rc, "event loop: %s", strerror(-rc));
	}
	log_info("event loop: %s%s%s", loop_name(server->loop),
		loop_why(server->loop)[0] ? ", no " : "", loop_why(server->loop));
	return 0;
}

int server_create(
	const struct server_options *options, struct server **ret_server, struct error *err)
{
	struct server *server = calloc(1, sizeof(*server));
	char host[48] = "host";
	uint64_t random[2];
	int rc;

	if (!server) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	server->options = *options;
	server->listener = server->tcp_listener = server->signal_fd = -1;
	server->lead.connecting = server->lead.data_connecting = -1;
	server->started_ns = clock_ns();
	server->epoch.ranks = 1;
	server->epoch.slot_bytes = options->slot_bytes;
	gethostname(host, sizeof(host) - 1);
	snprintf(server->name, sizeof(server->name), "%.40s:%d", host, (int)getpid());
	raise_descriptors();
	rc = random_bytes(random, sizeof(random));
	if (rc) {
		error_set(err, rc, "no random numbers from the kernel: %s", strerror(-rc));
	}
	/* Serials never repeat, also not across a restart of the lead. */
	server->broker_id = random[0] | 1;
	server->next_serial = random[1] >> 16;
	if (rc == 0 && options->key_file) {
		rc = key_file_read(options->key_file, &server->key, err);
	}
	if (rc == 0) {
		rc = open_signals(server, err);
	}
	if (rc == 0) {
		rc = open_backend(server, err);
	}
	if (rc == 0) {
		rc = open_sockets(server, err);
	}
	if (rc == 0) {
		rc = open_loop(server, err);
	}
	if (rc) {
		server_destroy(server);
		return rc;
	}
	*ret_server = server;
	return 0;
}

static void listen_for(struct server *server, uint32_t events)
{
	loop_modify(server->listener_source, events);
	if (server->tcp_source) {
		loop_modify(server->tcp_source, events);
	}
}

/* Without descriptors accept would fail again and again, and the loop never sleep. */
void server_accept_ended(struct server *server, int rc)
{
	if (rc == -EAGAIN) {
		return;
	}
	log_warn("new connections wait: %s", strerror(-rc));
	server->accept_at = deadline_in_ms(LIMIT_ACCEPT_PAUSE_MS);
	listen_for(server, 0);
}

static void accept_tick(struct server *server, uint64_t now)
{
	if (server->accept_at && now >= server->accept_at) {
		server->accept_at = 0;
		listen_for(server, EPOLLIN);
	}
}

static uint64_t next_due(const struct server *server)
{
	uint64_t due = MIN(MIN(clients_due(server), node_due(server)), catchup_due(server));

	due = MIN(due, settle_due(server));
	if (server->accept_at) {
		due = MIN(due, server->accept_at);
	}
	due = MIN(due, mover_due(server->mover));
	if (server_is_lead(server)) {
		due = MIN(due, MIN(lead_due(server), epoch_due(server)));
	}
	return MIN(due, join_due(server));
}

static bool drained(const struct server *server)
{
	return server->draining && server->node.stage == NODE_IDLE && !server->active &&
	       catchup_quiet(server);
}

void server_count_epoch(struct server *server)
{
	if (++server->epochs == LIMIT_EPOCHS && !server->draining) {
		log_info("%u epochs were made here: this broker starts anew behind the update",
			server->epochs);
		server->draining = server->again = true;
	}
}

bool server_starts_again(const struct server *server)
{
	return server->again && !server->stop && server->exit_code == 0;
}

void server_start(struct server *server)
{
	if (server->options.join) {
		join_start(server);
	} else {
		server_ready(server);
	}
}

/*
 * An update is a chain of messages, each the answer to the last, and a sleeping thread takes some
 * 50 us to wake: behind each of them the loop stays awake for a moment. 4 KiB across two brokers
 * took 540 us so, and 660 without.
 */
#define AWAKE_NS 400000u

static int stay_awake_or_sleep(struct server *server)
{
	uint64_t now = clock_ns();
	int rc;

	if (now < server->awake_until) {
		sched_yield();
		mover_look(server->mover);
		rc = loop_round(server->loop, now);
	} else {
		rc = loop_round(server->loop, next_due(server));
	}
	if (loop_stirred(server->loop) && (server->active || server->node.stage != NODE_IDLE)) {
		server->awake_until = clock_ns() + AWAKE_NS;
	}
	return rc;
}

void server_round(struct server *server)
{
	int rc = stay_awake_or_sleep(server);
	uint64_t now = clock_ns();

	if (rc) {
		server_fatal(server, strerror(-rc));
	}
	if (now >= mover_due(server->mover)) {
		server_abandon(server, "a call of the mover has not returned: the driver hangs");
	}
	accept_tick(server, now);
	clients_tick(server, now);
	node_tick(server, now);
	settle_tick(server, now);
	if (server_is_lead(server)) {
		lead_tick(server, now);
		epoch_tick(server, now);
	}
	join_tick(server, now);
	catchup_look(server);
}

int server_run(struct server *server)
{
	server_start(server);
	while (!server->stop && !drained(server)) {
		server_round(server);
	}
	notify_systemd("STOPPING=1");
	log_info("stopping");
	return server->exit_code;
}

void server_destroy(struct server *server)
{
	if (!server) {
		return;
	}
	/* The order: nobody new, everybody told, then the memory, when the mover is quiet. */
	if (server->listener >= 0) {
		unlink(server->socket_path);
	}
	atomic_store(&server->node.move.cancel, 1);
	atomic_store(&server->epoch.job.cancel, 1);
	if (server->loop) {
		members_drop_all(server);
		join_stop(server);
		clients_drop_all(server);
	}
	server->node.stage = NODE_IDLE;
	if (server->mover) {
		clients_release_due(server);
		node_forget(server);
		models_free(server);
		mover_destroy(server->mover);
	}
	if (server->abandoned) {
		_exit(server->exit_code); /* its last job has not ended on the GPU */
	}
	free(server->node.move.hashes); /* of a move that nobody was told of */
	lead_hashes_forget(server);
	teams_free(server);
	moves_destroy(server->moves);
	events_destroy(server->events);
	gpu_close(server->gpu);
	loop_destroy(server->loop);
	fd_close(&server->listener);
	fd_close(&server->tcp_listener);
	fd_close(&server->signal_fd);
	fd_close(&server->options.ready_fd);
	seal_key_wipe(&server->key);
	free(server);
}
