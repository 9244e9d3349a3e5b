//go:build unix && !linux

package stdio

import "os"

// readersHearEnd: macOS's kqueue tells a FIFO's readers of bytes, but not of the
// end (https://go.dev/issue/24164).
const readersHearEnd = false

// unread is not known here: a FIFO's writing end does not tell.
func (o *output) unread() int { return 0 }

// pending is not looked at here: a logging program that died with the end of its
// input unread is not run again for that.
func pending(*os.File) int { return 0 }
