/* The first process of a pod and of a node: it holds the namespaces, reaps what is orphaned in them, and ends when told. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal) { (void)signal; _exit(0); }

static void reap(int signal) {
	(void)signal;
	while (waitpid(-1, 0, WNOHANG) > 0) {}
}

int main(void) {
	signal(SIGCHLD, reap);
	signal(SIGINT, end);
	signal(SIGTERM, end);
	for (;;) pause();
}
