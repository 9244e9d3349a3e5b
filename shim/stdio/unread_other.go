//go:build unix && !linux

package stdio

// unread is not known here: a FIFO's writing end does not tell.
func (o *output) unread() int { return 0 }
