package engine

import (
	"os"
	"path/filepath"
	"testing"
)

// The files that README points to are what the program prints.
func TestRoleFilesAreCurrent(t *testing.T) {
	for _, task := range []string{"backup", "proxy", "restore"} {
		want, err := Role(task)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("..", "..", "vsphere", "roles", task+".sh"))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("vsphere/roles/%s.sh is not what `vmkeep-plugin role %s` prints", task, task)
		}
	}
	if _, err := Role("party"); err == nil {
		t.Error("there is a role for a party")
	}
}
