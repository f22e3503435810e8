/* What must not be slowed down by Python: a load generator for one server, and the floor under all of them.

   load get PORT CONNECTIONS COUNT PID HELLO HELLO_REPLY_LENGTH REQUEST REPLY
       COUNT times REQUEST over CONNECTIONS connections to 127.0.0.1, one request in flight on each.  HELLO, if not
       "-", is said on every connection before the clock starts.  Bytes are hexadecimal.  Every answer must be REPLY.
   load echo REQUEST_LENGTH REPLY_LENGTH
       Serves whoever connects, one after the other, on a port that it prints: a reply for every request.
   load ping PORT REQUEST_LENGTH REPLY_LENGTH COUNT
       COUNT requests to an echo, one after the other.

   `get` and `ping` print: seconds, own CPU seconds, CPU seconds of process PID (-1 if PID is 0 or not told). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ROOM = 1 << 18, MOST = 1024 };

static unsigned char buffer[ROOM];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static double wall(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double own_cpu(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

/* All threads of a process, in nanoseconds as the scheduler counts them; stat only knows hundredths of a second. */
static double cpu_of(int pid) {
    char path[300];
    double seconds = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = pid ? opendir(path) : NULL;
    if (!tasks) return -1;
    for (struct dirent *task; (task = readdir(tasks));) {
        long long ran;
        snprintf(path, sizeof path, "/proc/%d/task/%.20s/schedstat", pid, task->d_name);
        FILE *file = task->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (!file) continue;
        if (fscanf(file, "%lld", &ran) == 1) seconds += ran / 1e9;
        fclose(file);
    }
    closedir(tasks);
    return seconds > 0 ? seconds : -1;
}

typedef struct {
    double wall, own, server;
    int pid;
} Clock;

static Clock begin(int pid) { return (Clock){.server = cpu_of(pid), .own = own_cpu(), .wall = wall(), .pid = pid}; }

static void tell(Clock since) {
    double seconds = wall() - since.wall, own = own_cpu() - since.own, server = cpu_of(since.pid);
    printf("%.9f %.9f %.9f\n", seconds, own, server < 0 ? -1 : server - since.server);
}

static void no_delay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static int connected(int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
    no_delay(fd);
    return fd;
}

static void send_all(int fd, const unsigned char *bytes, size_t length) {
    if (send(fd, bytes, length, MSG_NOSIGNAL) != (ssize_t)length) die("send");
}

/* Whether so many bytes came, into `buffer`. */
static int received(int fd, size_t length) {
    for (size_t got = 0; got < length;) {
        ssize_t n = recv(fd, buffer + got, length - got, 0);
        if (n <= 0) return 0;
        got += n;
    }
    return 1;
}

static size_t from_hex(const char *text, unsigned char **bytes) {
    size_t length = strlen(text) / 2;
    *bytes = malloc(length + 1);
    for (size_t i = 0; i < length; i++) sscanf(text + 2 * i, "%2hhx", *bytes + i);
    return length;
}

static void echo(size_t request, size_t reply) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&at, size) < 0 || listen(listener, 16) < 0) die("listen");
    getsockname(listener, (struct sockaddr *)&at, &size);
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) die("accept");
        no_delay(fd);
        while (received(fd, request)) send_all(fd, buffer, reply);
        close(fd);
    }
}

static void ping(int port, size_t request, size_t reply, long count) {
    int fd = connected(port);
    Clock clock = begin(0);
    while (count--) {
        send_all(fd, buffer, request);
        if (!received(fd, reply)) die("recv");
    }
    tell(clock);
}

typedef struct {
    int fd;
    size_t got;
} Connection;

static void get(int port, int connections, long count, int pid, char **bytes) {
    unsigned char *hello, *request, *reply;
    size_t hello_length = bytes[0][0] == '-' ? 0 : from_hex(bytes[0], &hello), hello_reply = atol(bytes[1]);
    size_t request_length = from_hex(bytes[2], &request), reply_length = from_hex(bytes[3], &reply);
    Connection all[MOST];
    struct epoll_event ready[MOST];
    int poll = epoll_create1(0);
    for (int i = 0; i < connections; i++) {
        all[i] = (Connection){.fd = connected(port)};
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &event);
        if (!hello_length) continue;
        send_all(all[i].fd, hello, hello_length);
        if (!received(all[i].fd, hello_reply)) die("hello");
    }
    long asked = 0, answered = 0;
    Clock clock = begin(pid);
    for (int i = 0; i < connections && asked < count; i++, asked++) send_all(all[i].fd, request, request_length);
    while (answered < count) {
        int n = epoll_wait(poll, ready, MOST, -1);
        for (int i = 0; i < n; i++) {
            Connection *one = ready[i].data.ptr;
            ssize_t more = recv(one->fd, buffer, ROOM, 0);
            if (more <= 0) die("recv");
            if (one->got + more > reply_length || memcmp(reply + one->got, buffer, more)) {
                fprintf(stderr, "another answer than expected\n");
                exit(1);
            }
            if ((one->got += more) < reply_length) continue;
            one->got = 0;
            answered++;
            if (asked < count) send_all(one->fd, request, request_length), asked++;
        }
    }
    tell(clock);
}

int main(int count, char **word) {
    if (count == 10 && !strcmp(word[1], "get") && atoi(word[3]) <= MOST)
        get(atoi(word[2]), atoi(word[3]), atol(word[4]), atoi(word[5]), word + 6);
    else if (count == 4 && !strcmp(word[1], "echo") && atol(word[2]) <= ROOM && atol(word[3]) <= ROOM)
        echo(atol(word[2]), atol(word[3]));
    else if (count == 6 && !strcmp(word[1], "ping") && atol(word[3]) <= ROOM && atol(word[4]) <= ROOM)
        ping(atoi(word[2]), atol(word[3]), atol(word[4]), atol(word[5]));
    else {
        fprintf(stderr, "usage: see the source\n");
        return 2;
    }
    return 0;
}
