let () =
  Random.init 1;
  let kept = Hashtbl.create 2000 in
  let round = ref 0 in
  while true do
    for i = 0 to 29 do
      let block = Bytes.init (1 + Random.int 9000) (fun k -> Char.chr ((k * i + !round) land 255)) in
      Hashtbl.replace kept (!round mod 50, i) (block, Digest.bytes block, List.init i (fun k -> k))
    done;
    Hashtbl.iter
      (fun (_, i) (block, sum, list) ->
        if Digest.bytes block <> sum || List.length list <> i then begin
          print_endline "bad";
          exit 3
        end)
      kept;
    if !round mod 100 = 99 then Gc.compact ();
    Printf.printf "ok %d\n%!" !round;
    incr round
  done
