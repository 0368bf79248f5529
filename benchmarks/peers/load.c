/* Clients of a benchmark: many WebSocket connections in one thread, a publisher in another.
 *
 * Commands are lines on standard input, each is answered by one line of JSON on standard output:
 *
 *   flight N                         have up to N connections on their way at once from now on
 *   connect N [PATH]                 open N more connections; each is subscribed when it is counted. It is cut
 *                                    after CONNECT_S seconds, or PATIENCE_S in which none was
 *   stall N                          read nothing any more from the first N connections
 *   ask N TEXT                       the first N connections send TEXT (125 bytes at most) at once; answered
 *                                    when each has got a message since then
 *   publish COUNT SIZE BYTES RATE LIMIT
 *                                    COUNT calls of SIZE messages with BYTES of filling;
 *                                    RATE calls a second; 0: each when the one before has arrived
 *                                    everywhere; -1: up to WINDOW calls before that. It is cut after LIMIT
 *                                    seconds, or PATIENCE_S in which nothing arrives of what is due
 *
 * Usage: load PORT PATH WIRE PUBLISH_PORT PUBLISH_PATH TOKEN FIRST
 * FIRST: connections of other load clients; each PER_SOURCE have a source address of their own.
 * Wires: raw (subscribed by the upgrade), sio (Socket.IO 5 over Engine.IO 4), nats (its protocol
 * in WebSocket messages; publishes over TCP), nchan (raw; one request for each message).
 * Messages carry `"t0":nanoseconds`; the clock is CLOCK_MONOTONIC of this machine.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 20000, IN_FLIGHT = 256, WINDOW = 4, PATIENCE_S = 20, CONNECT_S = 180 };
enum { BUFFER = 1 << 22, BUCKETS = 4096, PER_SOURCE = 17000 };
static const uint32_t COMMANDS = UINT32_MAX;

enum wire { RAW, SIO, NATS, NCHAN };
enum state { UPGRADING, OPENING, ENTERING, READY, LOST };

struct connection {
    int fd;
    enum state state;
    uint64_t received;
    uint8_t *kept; /* bytes of a frame that has not arrived completely */
    uint32_t length;
};

static struct connection connections[MAX_CONNECTIONS];
static int total, ready, lost, stalled, poller, asked, answered;
static enum wire wire;
static int port, publish_port, first, in_flight = IN_FLIGHT;
static const uint64_t SECOND = 1000000000;
static const char *path, *publish_path, *token;
static uint8_t *scratch;

static atomic_ulong received;
static atomic_bool publishing;
static uint64_t bytes, histogram[BUCKETS], worst;

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void fail(const char *what)
{
    printf("{\"error\": \"%s: %s\"}\n", what, strerror(errno));
    exit(1);
}

/* Latencies: buckets of 1/64 of a power of two microseconds. */

static int bucket(uint64_t us)
{
    if (us < 64)
        return us;
    int exponent = 63 - __builtin_clzll(us);
    int index = (exponent - 5) * 64 + ((us >> (exponent - 6)) & 63);
    return index < BUCKETS ? index : BUCKETS - 1;
}

static double percentile(double part)
{
    uint64_t all = 0, below = 0;
    for (int i = 0; i < BUCKETS; i++)
        all += histogram[i];
    for (int i = 0; i < BUCKETS; i++) {
        below += histogram[i];
        if (all && below >= part * all)
            return (i < 64 ? i : (64.0 + i % 64) * (1ull << (i / 64 - 1))) / 1000;
    }
    return 0;
}

/* Writing: what a client says is short, so that it waits for room, PATIENCE_S at most. */

static void write_all(int fd, const void *data, size_t length)
{
    while (length) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent < 0) {
            shutdown(fd, SHUT_RDWR); /* the reader sees the end of the connection */
            return;
        }
        data = (const char *)data + sent;
        length -= sent;
    }
}

static void send_frame(int fd, int opcode, const void *data, size_t length)
{
    uint8_t frame[256] = {0x80 | opcode, 0x80 | length}; /* masked by zeros */
    if (length > 125)
        length = 0;
    memcpy(frame + 6, data, length);
    write_all(fd, frame, 6 + length);
}

static void say(int fd, const char *text)
{
    send_frame(fd, wire == NATS ? 2 : 1, text, strlen(text));
}

static int dial(int to, int index, bool blocking)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (fd < 0)
        fail("socket");
    struct timeval patience = {.tv_sec = PATIENCE_S};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience); /* of connect() and send() */
    struct sockaddr_in own = {.sin_family = AF_INET}, there = own;
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + (first + index) / PER_SOURCE);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&own, sizeof own))
        fail("bind");
    there.sin_port = htons(to);
    there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&there, sizeof there))
        fail("connect");
    if (!blocking) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = index};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
    return fd;
}

/* Reading */

static void lose(struct connection *c)
{
    if (c->state == READY)
        ready--;
    c->state = LOST;
    lost++;
    close(c->fd);
    free(c->kept);
    c->kept = NULL;
    c->length = 0;
}

static void enter(struct connection *c)
{
    c->state = READY;
    ready++;
}

static void count_messages(struct connection *c, const uint8_t *data, size_t length, uint64_t at)
{
    const uint8_t *end = data + length;
    while ((data = memmem(data, end - data, "\"t0\":", 5))) {
        uint64_t sent = 0;
        for (data += 5; data < end && *data >= '0' && *data <= '9'; data++)
            sent = sent * 10 + (*data - '0');
        uint64_t late = at > sent ? at - sent : 0;
        histogram[bucket(late / 1000)]++;
        if (late > worst)
            worst = late;
        c->received++;
        atomic_fetch_add_explicit(&received, 1, memory_order_relaxed);
    }
}

static void on_message(struct connection *c, int opcode, const uint8_t *data, size_t length, uint64_t at)
{
    if (opcode == 9) {
        send_frame(c->fd, 10, data, length);
    } else if (opcode == 8) {
        lose(c);
    } else if (wire == SIO && length == 1 && data[0] == '2') {
        say(c->fd, "3");
    } else if (wire == SIO && c->state == OPENING && data[0] == '0') {
        c->state = ENTERING;
        say(c->fd, "40");
    } else if (wire == SIO && c->state == ENTERING && length > 1 && data[1] == '0') {
        enter(c);
    } else if (atomic_load_explicit(&publishing, memory_order_relaxed)) {
        count_messages(c, data, length, at);
    } else if (c - connections < asked && !c->received) {
        c->received = 1;
        answered++;
    }
}

/* A frame of NATS has as many lines of its protocol as came together: PONG or PING beside messages. */
static void on_nats(struct connection *c, const uint8_t *data, size_t length)
{
    if (c->state != READY && memmem(data, length, "PONG\r\n", 6))
        enter(c);
    if (memmem(data, length, "PING\r\n", 6))
        say(c->fd, "PONG\r\n");
}

static size_t on_upgrade(struct connection *c, const uint8_t *data, size_t length)
{
    const uint8_t *end = memmem(data, length, "\r\n\r\n", 4);
    if (!end)
        return 0;
    if (length < 12 || memcmp(data + 9, "101", 3)) {
        lose(c);
        return 0;
    }
    c->state = OPENING;
    if (wire == NATS)
        say(c->fd, "CONNECT {\"verbose\":false}\r\nSUB status 1\r\nPING\r\n");
    else if (wire != SIO)
        enter(c);
    return end + 4 - data;
}

static void on_readable(struct connection *c)
{
    memcpy(scratch, c->kept, c->length);
    ssize_t got = recv(c->fd, scratch + c->length, BUFFER - c->length, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        lose(c);
        return;
    }
    bytes += got;
    uint64_t at = now();
    size_t length = c->length + got, used = 0;
    if (c->state == UPGRADING)
        used = on_upgrade(c, scratch, length);
    while (c->state != UPGRADING && c->state != LOST && length - used >= 2) {
        const uint8_t *frame = scratch + used;
        uint64_t size = frame[1] & 127;
        size_t head = size == 126 ? 4 : size == 127 ? 10 : 2;
        if (length - used < head)
            break;
        if (head > 2) {
            size = 0;
            for (size_t i = 2; i < head; i++)
                size = size << 8 | frame[i];
        }
        if (length - used - head < size)
            break;
        if (wire == NATS)
            on_nats(c, frame + head, size);
        on_message(c, frame[0] & 15, frame + head, size, at);
        used += head + size;
    }
    if (c->state == LOST)
        return;
    free(c->kept);
    c->kept = NULL;
    c->length = length - used;
    if (c->length) {
        c->kept = malloc(c->length);
        memcpy(c->kept, scratch + used, c->length);
    }
}

/* Returns whether there is a command. */
static bool poll_once(int wait_ms)
{
    struct epoll_event events[512];
    bool command = false;
    int count = epoll_wait(poller, events, 512, wait_ms);
    for (int i = 0; i < count; i++) {
        if (events[i].data.u32 == COMMANDS)
            command = true;
        else
            on_readable(&connections[events[i].data.u32]);
    }
    return command;
}

/* Commands */

static void open_connections(int more, const char *path)
{
    char head[512];
    int length = snprintf(head, sizeof head,
                          "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
                          "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                          path, port);
    int wanted = total + more < MAX_CONNECTIONS ? total + more : MAX_CONNECTIONS;
    int before = ready, seen = ready + lost;
    uint64_t began = now(), progress = began;
    while (ready + lost < wanted && now() - began < CONNECT_S * SECOND && now() - progress < PATIENCE_S * SECOND) {
        if (ready + lost != seen) {
            seen = ready + lost;
            progress = now();
        }
        if (total < wanted && total - ready - lost < in_flight) {
            struct connection *c = &connections[total];
            *c = (struct connection){.fd = dial(port, total, false)};
            write_all(c->fd, head, length);
            total++;
            poll_once(0);
        } else {
            poll_once(100);
        }
    }
    printf("{\"ready\": %d, \"new\": %d, \"lost\": %d, \"seconds\": %.3f}\n", ready, ready - before, lost, (now() - began) / 1e9);
}

static void stall(int count)
{
    for (; stalled < count && stalled < total; stalled++)
        epoll_ctl(poller, EPOLL_CTL_DEL, connections[stalled].fd, NULL);
    printf("{\"stalled\": %d}\n", stalled);
}

static void ask(int count, const char *text)
{
    asked = count < total ? count : total;
    answered = 0;
    for (int i = 0; i < asked; i++)
        connections[i].received = 0;
    uint64_t began = now(), deadline = began + PATIENCE_S * SECOND;
    for (int i = 0; i < asked; i++) {
        if (connections[i].state == READY)
            say(connections[i].fd, text);
        if (i % 64 == 0)
            poll_once(0);
    }
    while (answered < asked && now() < deadline)
        poll_once(20);
    asked = 0;
    printf("{\"answered\": %d, \"lost\": %d, \"seconds\": %.3f}\n", answered, lost, (now() - began) / 1e9);
}

struct order {
    int count, size, filling;
    double rate, limit;
    int fd, failed;
    uint64_t per_call;
    atomic_ulong due; /* deliveries of the calls that were made */
    atomic_bool done, cut;
};

/* Reads as many HTTP answers as there were requests; returns how many were not 2xx. */
static int read_answers(int fd, int count)
{
    static char answer[1 << 20];
    size_t length = 0;
    int failed = 0;
    while (count) {
        ssize_t got = recv(fd, answer + length, sizeof answer - 1 - length, 0);
        if (got <= 0)
            return failed + count;
        length += got;
        answer[length] = 0;
        char *end;
        while (count && (end = strstr(answer, "\r\n\r\n"))) {
            char *field = strcasestr(answer, "content-length:");
            size_t body = field && field < end ? strtoul(field + 15, NULL, 10) : 0;
            bool chunked = !(field && field < end) && strcasestr(answer, "chunked") < end &&
                           strcasestr(answer, "chunked");
            char *next = end + 4 + body;
            if (chunked) {
                char *last = strstr(end + 4, "0\r\n\r\n");
                next = last ? last + 5 : answer + length + 1;
            }
            if (next > answer + length)
                break;
            if (answer[9] != '2')
                failed++;
            count--;
            length -= next - answer;
            memmove(answer, next, length + 1);
        }
    }
    return failed;
}

/* Waits until NATS has read what was published: a connection that is closed with unread input is reset, and
 * what the server has not read yet is lost. Returns whether it failed. */
static int finish_nats(int fd)
{
    char answer[1 << 16];
    size_t length = 0;
    write_all(fd, "PING\r\n", 6);
    for (;;) {
        ssize_t got = recv(fd, answer + length, sizeof answer - length, 0);
        if (got <= 0)
            return 1;
        length += got;
        if (memmem(answer, length, "PONG\r\n", 6))
            return memmem(answer, length, "-ERR", 4) != NULL;
    }
}

static size_t write_message(char *to, int number, const char *filling)
{
    return sprintf(to, "{\"type\":\"status\",\"event\":\"tick\",\"data\":{\"n\":%d,\"t0\":%llu,\"filling\":\"%s\"}}",
                   number, (unsigned long long)now(), filling);
}

static int publish_once(int fd, struct order *order, int number, char *body, char *request, const char *filling)
{
    size_t length = 0, size = 0;
    for (int i = 0; i < order->size; i++) {
        if (wire == NATS || wire == NCHAN) {
            length = write_message(body, number + i, filling);
            size += wire == NATS
                        ? sprintf(request + size, "PUB status %zu\r\n%s\r\n", length, body)
                        : sprintf(request + size, "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %zu\r\n\r\n%s",
                                  publish_path, length, body);
        } else {
            length += sprintf(body + length, "%s", i ? "," : order->size > 1 ? "[" : "");
            length += write_message(body + length, number + i, filling);
        }
    }
    if (wire == RAW || wire == SIO) {
        length += sprintf(body + length, "%s", order->size > 1 ? "]" : "");
        size = sprintf(request,
                       "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                       "Authorization: Bearer %s\r\nContent-Length: %zu\r\n\r\n%s",
                       publish_path, publish_port, token, length, body);
    }
    write_all(fd, request, size);
    if (wire == NATS)
        return 0;
    return read_answers(fd, wire == NCHAN ? order->size : 1);
}

/* Waits until a call may be made; returns whether it still should. */
static bool wait_for_turn(struct order *order, uint64_t began, int call)
{
    int ahead = order->rate < 0 ? WINDOW : 1;
    uint64_t needed = call >= ahead ? (call - ahead + 1) * order->per_call : 0;
    while (!atomic_load(&order->cut)) {
        int64_t early_us = 50;
        if (order->rate > 0)
            early_us = ((int64_t)began + (int64_t)(call / order->rate * SECOND) - (int64_t)now()) / 1000;
        else if (atomic_load(&received) >= needed)
            return true;
        if (early_us <= 0)
            return true;
        usleep(early_us < 20000 ? early_us : 20000);
    }
    return false;
}

static void *publish(void *argument)
{
    struct order *order = argument;
    size_t room = (order->filling + 1024ul) * order->size + 4096;
    char *body = malloc(room), *request = malloc(room), *filling = malloc(order->filling + 1);
    memset(filling, 'x', order->filling);
    filling[order->filling] = 0;
    int fd = order->fd;
    if (wire == NATS)
        write_all(fd, "CONNECT {\"verbose\":false}\r\n", 27);
    uint64_t began = now();
    for (int i = 0; i < order->count && wait_for_turn(order, began, i); i++) {
        atomic_fetch_add(&order->due, order->per_call);
        order->failed += publish_once(fd, order, i * order->size, body, request, filling);
    }
    if (wire == NATS)
        order->failed += finish_nats(fd);
    free(body);
    free(request);
    free(filling);
    atomic_store(&order->done, true);
    return NULL;
}

static void run(struct order *order)
{
    memset(histogram, 0, sizeof histogram);
    worst = bytes = 0;
    atomic_store(&received, 0);
    for (int i = 0; i < total; i++)
        connections[i].received = 0;
    atomic_store(&publishing, true);
    order->fd = dial(publish_port, 0, true);
    order->per_call = (uint64_t)(ready - stalled) * order->size;
    uint64_t began = now(), progress = began, seen = 0, ended = began, expected = order->count * order->per_call;
    pthread_t thread;
    if (pthread_create(&thread, NULL, publish, order))
        fail("pthread_create");
    while (!atomic_load(&order->done) || seen < expected) {
        poll_once(20);
        uint64_t count = atomic_load(&received), time = now();
        if (count != seen)
            ended = time;
        if (count != seen || seen >= atomic_load(&order->due))
            progress = time;
        seen = count;
        if (time - progress > PATIENCE_S * SECOND || time - began > order->limit * SECOND) {
            atomic_store(&order->cut, true);
            shutdown(order->fd, SHUT_RDWR); /* ends what the publisher waits for */
            break;
        }
    }
    pthread_join(thread, NULL);
    close(order->fd);
    atomic_store(&publishing, false);
    uint64_t each = (uint64_t)order->count * order->size, missing = 0, repeated = 0;
    for (int i = stalled; i < total; i++) {
        if (connections[i].state != READY)
            continue;
        if (connections[i].received < each)
            missing += each - connections[i].received;
        else
            repeated += connections[i].received - each;
    }
    printf("{\"received\": %lu, \"expected\": %lu, \"missing\": %lu, \"repeated\": %lu, \"failed\": %d, \"lost\": %d, "
           "\"cut\": %s, \"bytes\": %lu, \"seconds\": %.4f, \"latency_ms\": {\"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}}\n",
           seen, expected, missing, repeated, order->failed, lost, order->cut ? "true" : "false", bytes, (ended - began) / 1e9,
           percentile(0.5), percentile(0.99), worst / 1e6);
}

int main(int count, char **arguments)
{
    if (count != 8) {
        fprintf(stderr, "usage: load PORT PATH WIRE PUBLISH_PORT PUBLISH_PATH TOKEN FIRST\n");
        return 2;
    }
    port = atoi(arguments[1]);
    path = arguments[2];
    wire = !strcmp(arguments[3], "sio") ? SIO : !strcmp(arguments[3], "nats") ? NATS : !strcmp(arguments[3], "nchan") ? NCHAN : RAW;
    publish_port = atoi(arguments[4]);
    publish_path = arguments[5];
    token = arguments[6];
    first = atoi(arguments[7]);
    poller = epoll_create1(EPOLL_CLOEXEC);
    scratch = malloc(BUFFER);
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = COMMANDS};
    epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    char line[1024], named[512];
    for (;;) {
        while (!poll_once(-1))
            ;
        ssize_t length = read(STDIN_FILENO, line, sizeof line - 1); /* one command: the next waits for the answer */
        if (length <= 0)
            break;
        line[length] = 0;
        int number;
        struct order order = {0};
        if (sscanf(line, "connect %d %511s", &number, named) == 2)
            open_connections(number, named);
        else if (sscanf(line, "connect %d", &number) == 1)
            open_connections(number, path);
        else if (sscanf(line, "flight %d", &in_flight) == 1)
            printf("{\"flight\": %d}\n", in_flight);
        else if (sscanf(line, "stall %d", &number) == 1)
            stall(number);
        else if (sscanf(line, "ask %d %511[^\n]", &number, named) == 2)
            ask(number, named);
        else if (sscanf(line, "publish %d %d %d %lf %lf", &order.count, &order.size, &order.filling, &order.rate, &order.limit) == 5)
            run(&order);
        else
            printf("{\"error\": \"not a command\"}\n");
    }
    return 0;
}
