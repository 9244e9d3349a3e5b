/* What of macOS's os/log.h the package uses, for a test without it: messages go to standard
   error. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct os_log_s { char *subsystem, *category; } *os_log_t;
typedef uint8_t os_log_type_t;
static os_log_t os_log_create(const char *subsystem, const char *category) {
	os_log_t l = malloc(sizeof *l);
	l->subsystem = strdup(subsystem);
	l->category = strdup(category);
	return l;
}
/* As there, the format must be a constant. C knows no {public}: it is shown as it is. */
#define os_log_with_type(log, type, format, text) \
	fprintf(stderr, "%s %s %#x %s %s\n", (log)->subsystem, (log)->category, (os_log_type_t)(type), "" format, text)
