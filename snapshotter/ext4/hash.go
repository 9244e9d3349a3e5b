package ext4

import "math/bits"

// dirHash returns the half-MD4 hash by which a directory's hash tree finds
// name, as ext4fs_dirhash in the kernel's fs/ext4/hash.c does with unsigned
// characters. seed is the superblock's s_hash_seed.
func dirHash(name string, seed [4]uint32) uint32 {
	buf := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	if seed != [4]uint32{} {
		buf = seed
	}
	var in [8]uint32
	for {
		strToHashBuf(name, &in)
		halfMD4(&buf, &in)
		if len(name) <= 32 {
			break
		}
		name = name[32:]
	}
	const eof = 1<<31 - 1 // EXT4_HTREE_EOF_32BIT
	h := buf[1] &^ 1
	if h == eof<<1 {
		h = (eof - 1) << 1
	}
	return h
}

// strToHashBuf fills buf from the first 32 bytes of s, padded with its length.
func strToHashBuf(s string, buf *[8]uint32) {
	pad := uint32(len(s)) | uint32(len(s))<<8
	pad |= pad << 16
	if len(s) > 32 {
		s = s[:32]
	}
	i, val := 0, pad
	for j := 0; j < len(s); j++ {
		val = uint32(s[j]) + val<<8
		if j%4 == 3 {
			buf[i] = val
			val = pad
			i++
		}
	}
	if i < len(buf) {
		buf[i] = val
		i++
	}
	for ; i < len(buf); i++ {
		buf[i] = pad
	}
}

// halfMD4 is the kernel's half_md4_transform (fs/ext4/hash.c).
func halfMD4(buf *[4]uint32, in *[8]uint32) {
	f := func(x, y, z uint32) uint32 { return z ^ (x & (y ^ z)) }
	g := func(x, y, z uint32) uint32 { return (x & y) + ((x ^ y) & z) }
	h := func(x, y, z uint32) uint32 { return x ^ y ^ z }
	const k2, k3 = 0o13240474631, 0o15666365641

	a, b, c, d := buf[0], buf[1], buf[2], buf[3]
	for i := 0; i < 8; i += 4 {
		a = bits.RotateLeft32(a+f(b, c, d)+in[i], 3)
		d = bits.RotateLeft32(d+f(a, b, c)+in[i+1], 7)
		c = bits.RotateLeft32(c+f(d, a, b)+in[i+2], 11)
		b = bits.RotateLeft32(b+f(c, d, a)+in[i+3], 19)
	}
	for _, i := range [2]int{1, 0} {
		a = bits.RotateLeft32(a+g(b, c, d)+in[i]+k2, 3)
		d = bits.RotateLeft32(d+g(a, b, c)+in[i+2]+k2, 5)
		c = bits.RotateLeft32(c+g(d, a, b)+in[i+4]+k2, 9)
		b = bits.RotateLeft32(b+g(c, d, a)+in[i+6]+k2, 13)
	}
	for _, i := range [2]int{3, 1} {
		a = bits.RotateLeft32(a+h(b, c, d)+in[i]+k3, 3)
		d = bits.RotateLeft32(d+h(a, b, c)+in[i+4]+k3, 9)
		c = bits.RotateLeft32(c+h(d, a, b)+in[i-1]+k3, 11)
		b = bits.RotateLeft32(b+h(c, d, a)+in[i+3]+k3, 15)
	}
	buf[0] += a
	buf[1] += b
	buf[2] += c
	buf[3] += d
}
