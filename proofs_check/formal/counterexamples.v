(* Instances, computed by the programs of executable.v, at which C4, C5 and C6 stop being true:

   - windows of length u, not 2u, are too short for C4;
   - R = floor(rho / 2u) + 1 steps are not enough for C5 with four experts, as was once conjectured;
   - the bound of C6 fails for unequal targets.

   And what cannot be improved: the first bound of C6 is attained. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ssrint rat.
From alflb Require Import definitions topk c5_finite_entry executable certificate.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* Numbers are rational here. *)
Local Notation Q := [realFieldType of rat].

(* ------------------------------------------------------- C6 and its limits *)
(* Unequal targets (0, 2, 1, 1): the gap is 8 and the bound is 4. *)
Theorem balance_bound_needs_equal_targets :
  exists (scores : 'I_2 -> 'I_4 -> rat) (L p : 'I_4 -> rat) (x : 'I_2 -> 'I_4 -> rat),
  [/\ optimal 2 scores L x, D 2 scores L p - value scores x = 8%:R &
      2%:R^-1 * violation 2 scores L p * (spread p + score_range scores) = 4%:R].
Proof.
pose scores : seq (seq int) := [:: [:: 3%:Z; 0; 4%:Z; 4%:Z]; [:: 4%:Z; 2%:Z; 0; 0]].
pose L : seq int := [:: 0; 2%:Z; 1; 1].
pose x : seq (seq int) := [:: [:: 0; 1; 1; 0]; [:: 0; 1; 0; 1]].
exists (matrix 2 4 scores), (vector 4 (row L)), (vector 4 (row [::])), (matrix 2 4 x); split.
- by apply: (certified_optimal (p := row [:: - 4%:Z; 4%:Z; 0; 0])); vm_compute.
- by rewrite run_DE run_valueE; apply/eqP; vm_compute.
by rewrite run_violationE run_spreadE run_score_rangeE; apply/eqP; vm_compute.
Qed.

(* Two tokens with equal scores and the bias (1, 0): the gap and its bound are both 1. *)
Theorem balance_bound_attained :
  exists (scores : 'I_2 -> 'I_2 -> rat) (p : 'I_2 -> rat) (x : 'I_2 -> 'I_2 -> rat),
  let L := even Q 2 1 in
  [/\ optimal 1 scores L x, D 1 scores L p - value scores x = 1 &
      2%:R^-1 * violation 1 scores L p * (spread p + score_range scores) = 1].
Proof.
pose x : seq (seq int) := [:: [:: 1; 0]; [:: 0; 1]].
exists (matrix 2 2 [::]), (vector 2 (row [:: 1; 0])), (matrix 2 2 x).
have -> : even Q 2 1 = vector 2 (fun=> (1 * 2)%:R / 2%:R) by [].
split.
- by apply: (certified_optimal (p := row [::])); vm_compute.
- by rewrite run_DE run_valueE; apply/eqP; vm_compute.
by rewrite run_violationE run_spreadE run_score_rangeE; apply/eqP; vm_compute.
Qed.

(* ------------------------------------------------------- C4 and C5 at their limits *)

(* With windows of length u: m(u) = 1, but two tokens cross in one step and leave the band m (E - 1) = 1. *)
Theorem half_windows_are_too_short :
  exists (scores : 'I_3 -> 'I_2 -> rat) (u : rat) (p : 'I_2 -> rat) (k : 'I_2),
  let L := even Q 3 1 in let q := sign_step 1 scores L u p in
  [/\ 0 < u, multiplicity scores u = 1%N, `|(load 1 scores p k)%:R - L k| <= sharp_band Q 1 2 &
      1 < `|(load 1 scores q k)%:R - L k|].
Proof.
pose rows : seq (seq int) := [:: [:: 0; 0]; [:: 0; 3%:Z]; [:: 3%:Z; 0]].
pose L (k : nat) : rat := (1 * 3)%:R / 2%:R.
exists (matrix 3 2 rows), 2%:R, (vector 2 (nth 0 [::])), ord0 => L' q; split=> //.
- by rewrite run_multiplicityE; vm_compute.
- by rewrite run_loadE; vm_compute.
have qE : q =1 vector 2 (nth 0 (run_signs 3 2 1 (table rows) L 2%:R [::] 1)).
  by move=> k; exact: (run_signsE 3 1 (table rows) L 2%:R [::] 1 k).
by rewrite (eq_load 1 _ qE) run_loadE; vm_compute.
Qed.

(* Loads of a run with a whole target are computed in whole numbers. *)
Lemma computed_load T E K rows (L u : int) n (k : 'I_E) : (forall j : 'I_E, even Q T K j = L%:~R :> rat) ->
  load K (matrix T E rows) (bias K (matrix T E rows) u%:~R n) k =
  run_load T E K (whole_table rows)
    (nth 0 (run_signs T E K (whole_table rows) (fun=> L) u (nseq E 0) n)) k.
Proof.
move=> LE; pose whole (i : 'I_T) (k : 'I_E) := whole_table rows i k.
have biasE : bias K (matrix T E rows) u%:~R n =1
    read _ (iter n (sign_step K whole (fun=> L) u) (fun=> 0)).
  by move=> j; rewrite -iter_sign_step_whole; apply: eq_iter_sign_step.
rewrite (eq_load _ _ biasE) load_whole -run_loadE; apply: eq_load => j.
rewrite -[RHS]run_signsE; apply: eq_iter_sign_step => // i.
by rewrite /restricted nth_nseq if_same.
Qed.

(* E = 4, T = 8, u = 1, m(2u) = 1, rho = 117, so that R = 59: expert 0 is outside the band at step 60. It holds five
   tokens that prefer it by about rho; the other three tokens are indifferent between two of the other experts, so that
   one of those is balanced at most steps and gains only u. *)
Theorem R_steps_are_not_enough :
  exists (scores : 'I_8 -> 'I_4 -> rat) (u : rat) (R : nat) (k : 'I_4),
  let L := even Q 8 1 in
  [/\ 0 < u, score_range scores < 2%:R * u * R%:R, multiplicity scores (2%:R * u) = 1%N &
      sharp_band Q 1 4 < `|(load 1 scores (bias 1 scores u R.+1) k)%:R - L k|].
Proof.
pose rows : seq (seq int) := map (map Posz)
  [:: [:: 26; 120; 120; 36]; [:: 47; 16; 120; 120]; [:: 30; 120; 32; 120]; [:: 120; 4; 10; 15];
      [:: 120; 16; 13; 4]; [:: 120; 19; 3; 11]; [:: 120; 13; 7; 18]; [:: 120; 10; 19; 7]]%N.
exists (matrix 8 4 rows), 1%:~R, 59%N, ord0; split=> //.
- by rewrite run_score_rangeE; vm_compute.
- by rewrite run_multiplicityE; vm_compute.
by rewrite (computed_load rows (L := 2%:Z)) //; vm_compute.
Qed.
