//go:build cgo && (darwin || macsim)

package unifiedlog

/*
#include <stdlib.h>
#include <stdint.h>
#include <os/log.h>

// os_log_with_type is a macro that wants a constant format. Without %{public} macOS
// would show <private> in a message's place.
static void applevm_log(os_log_t log, uint8_t type, const char *text) {
	os_log_with_type(log, (os_log_type_t)type, "%{public}s", text);
}
*/
import "C"

import "unsafe"

// open returns what writes to the log. Loggers live as long as the process (os_log_create(3)).
func open(subsystem, category string) func(k kind, text string) {
	s, c := C.CString(subsystem), C.CString(category)
	defer C.free(unsafe.Pointer(s))
	defer C.free(unsafe.Pointer(c))
	l := C.os_log_create(s, c)
	return func(k kind, text string) {
		t := C.CString(text)
		defer C.free(unsafe.Pointer(t))
		C.applevm_log(l, C.uint8_t(k), t)
	}
}
