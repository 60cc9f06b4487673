package main

import (
	"fmt"
	"hash/crc32"
	"math/rand"
	"os"
	"sync/atomic"
	"time"
)

type block struct {
	data []byte
	sum  uint32
}

func work(seed int64, rounds *int64) {
	r := rand.New(rand.NewSource(seed))
	kept := map[int]*block{}
	for n := 0; ; n++ {
		for i := 0; i < 30; i++ {
			data := make([]byte, 1+r.Intn(9000))
			r.Read(data)
			kept[n*30+i] = &block{data, crc32.ChecksumIEEE(data)}
		}
		for key := range kept {
			if len(kept) <= 800 {
				break
			}
			delete(kept, key)
		}
		for key, b := range kept {
			if crc32.ChecksumIEEE(b.data) != b.sum {
				fmt.Println("bad: block", key)
				os.Exit(3)
			}
		}
		atomic.AddInt64(rounds, 1)
	}
}

func main() {
	rounds := make([]int64, 4)
	for i := range rounds {
		go work(int64(i), &rounds[i])
	}
	shown := int64(0)
	for {
		time.Sleep(10 * time.Millisecond)
		least := rounds[0]
		for i := range rounds {
			if now := atomic.LoadInt64(&rounds[i]); now < least {
				least = now
			}
		}
		if least > shown {
			shown = least
			fmt.Println("ok", least)
		}
	}
}
