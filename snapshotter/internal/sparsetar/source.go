package sparsetar

import "io"

// source is the stream. What was read of it can be put back, and its error stays.
type source struct {
	r    io.Reader
	back []byte // to read before anything else
	err  error  // of r
}

func (s *source) Read(p []byte) (int, error) {
	if len(s.back) > 0 {
		n := copy(p, s.back)
		s.back = s.back[n:]
		return n, nil
	}
	if s.err != nil {
		return 0, s.err
	}
	var n int
	n, s.err = s.r.Read(p)
	return n, s.err
}
