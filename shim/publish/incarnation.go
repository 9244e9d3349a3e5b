package publish

import (
	"fmt"
	"net"
	"os"
	"time"
)

// Incarnation tells one run of containerd from another, by the socket at address that
// each makes anew; it is empty while nobody serves there.
func Incarnation(address string) string {
	conn, err := net.DialTimeout("unix", address, time.Second)
	if err != nil {
		return ""
	}
	_ = conn.Close()
	st, err := os.Stat(address)
	if err != nil {
		return ""
	}
	return fmt.Sprint(st.ModTime().UnixNano())
}
