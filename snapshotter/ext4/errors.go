package ext4

import (
	"errors"
	"fmt"
)

// ErrCorrupt is what a reader's errors wrap when an image contradicts itself.
var ErrCorrupt = errors.New("corrupt ext4 image")

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}
