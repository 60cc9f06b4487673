<?php
mt_srand(1);
$kept = [];
for ($round = 0; ; $round++) {
    for ($i = 0; $i < 30; $i++) {
        $block = str_repeat(pack('N', mt_rand()), mt_rand(1, 3000)) . $round;
        $kept["$round/$i"] = [$block, crc32($block), ['n' => $i, 's' => str_repeat('x', $i)]];
    }
    while (count($kept) > 1500) {
        unset($kept[array_key_first($kept)]);
    }
    foreach ($kept as $name => [$block, $sum, $object]) {
        if (crc32($block) !== $sum || strlen($object['s']) !== $object['n']) {
            echo "bad: $name\n";
            exit(3);
        }
    }
    echo "ok $round\n";
}
