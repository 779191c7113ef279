package mounttest

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Hive makes a hive of the Windows registry at path: an empty one of ours, into which hivexregedit (which knows the
// format from elsewhere) merges text in the form of regedit, with keys below HKEY_LOCAL_MACHINE\X.
func Hive(t testing.TB, path, text string) {
	t.Helper()
	NeedTools(t, "hivexregedit")
	if err := os.WriteFile(path, emptyHive(), 0o600); err != nil {
		t.Fatal(err)
	}
	reg := filepath.Join(t.TempDir(), "text.reg")
	if err := os.WriteFile(reg, []byte("Windows Registry Editor Version 5.00\n\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("hivexregedit", "--merge", "--prefix", `HKEY_LOCAL_MACHINE\X`, path, reg).CombinedOutput(); err != nil {
		t.Fatalf("hivexregedit: %v\n%s", err, out)
	}
}

// emptyHive is a base block and one bin: a key at the top without anything below, its security descriptor, and room.
func emptyHive() []byte {
	le := binary.LittleEndian
	b := make([]byte, 8192)
	copy(b, "regf")
	le.PutUint32(b[4:], 1)
	le.PutUint32(b[8:], 1)
	le.PutUint32(b[20:], 1)
	le.PutUint32(b[24:], 5)
	le.PutUint32(b[32:], 1)
	const root, security = 32, 32 + 96
	le.PutUint32(b[36:], root)
	le.PutUint32(b[40:], 4096)
	le.PutUint32(b[44:], 1)
	var sum uint32
	for k := 0; k < 508; k += 4 {
		sum ^= le.Uint32(b[k:])
	}
	le.PutUint32(b[508:], sum)

	bin := b[4096:]
	copy(bin, "hbin")
	le.PutUint32(bin[8:], 4096)
	cell := func(at, length int, used bool) []byte {
		n := int32(length)
		if used {
			n = -n
		}
		le.PutUint32(bin[at:], uint32(n))
		return bin[at+4 : at+length]
	}
	const none = 0xffffffff
	k := cell(root, 96, true)
	copy(k, "nk")
	le.PutUint16(k[2:], 0x2c) // name in Latin-1, the top, not to be removed
	for _, at := range []int{16, 28, 32, 40, 48} {
		le.PutUint32(k[at:], none)
	}
	le.PutUint32(k[44:], security)
	le.PutUint16(k[72:], 4)
	copy(k[76:], "root")
	s := cell(security, 48, true)
	copy(s, "sk")
	le.PutUint32(s[4:], security)
	le.PutUint32(s[8:], security)
	le.PutUint32(s[12:], 1)
	le.PutUint32(s[16:], 20)
	s[20], s[22], s[23] = 1, 0x00, 0x80 // a self-relative descriptor of nothing
	cell(security+48, 4096-security-48, false)
	return b
}
