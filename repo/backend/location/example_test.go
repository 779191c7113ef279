package location_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/location"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Locations print without secrets.
func ExampleParse() {
	l, err := location.Parse("rest:https://keeper:pa%2Fss@backup.example.net:8000/vms/")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(l)
	// Output: rest:https://keeper:***@backup.example.net:8000/vms/
}

// The store of a new repository takes files, and gives them back in ranges.
func ExampleCreate() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	l, err := location.Parse("local:" + filepath.Join(dir, "repository"))
	if err != nil {
		log.Fatal(err)
	}
	store, err := location.Create(ctx, l, location.Settings{})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	data := []byte("what a file of the repository holds")
	h := backend.Handle{Type: restic.PackFile, Name: restic.Hash(data).String()}
	if err := store.Save(ctx, h, data); err != nil {
		log.Fatal(err)
	}
	err = store.Load(ctx, h, 15, 14, func(r io.Reader) error {
		part, err := io.ReadAll(r)
		fmt.Printf("%q\n", part)
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	err = store.Load(ctx, h, 30, 10, func(io.Reader) error { return nil })
	fmt.Println(errors.Is(err, backend.ErrPermanent))
	// Output:
	// "the repository"
	// true
}
