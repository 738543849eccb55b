(* What is false, refuted by instances:

   - no step size makes the sign rule or the proportional rule monotone: one token with two equal scores sees D rise by u
     and by eps / 2;
   - the bound of C6 fails for unequal targets;
   - R = floor(rho / 2u) + 1 steps are not enough for C5 with four experts, as was once conjectured;
   - windows of length u, not 2u, are too short for C4.

   And what cannot be improved: the first bound of C6 is attained. All but the first are computed, by the programs of
   executable.v. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ssrint zmodp rat ring.
From alflb Require Import definitions topk duality c5_finite_entry executable.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ------------------------------------------------- D rises, at every step size *)
Section Monotonicity.
Variable F : realFieldType.
Implicit Types (q : 'I_2 -> F).
Definition equal_scores (i : 'I_1) (k : 'I_2) : F := 0.
Definition zero_bias (k : 'I_2) : F := 0.
Local Notation L := (even F 1 1).
Local Notation D := (D 1 equal_scores L).

Lemma load_zero k : load 1 equal_scores zero_bias k = (k == ord0) :> nat.
Proof.
have picked i : (k \in picks 1 equal_scores zero_bias i) = (k == ord0).
  rewrite inE ltnS leqn0 cards_eq0; apply/eqP/eqP=> [none|->]; last first.
    by apply/setP=> j; rewrite !inE /beats ltxx ltn0 andbF.
  apply/val_inj/eqP; rewrite -leqn0 leqNgt; apply/negP=> k0.
  by move/setP/(_ ord0): none; rewrite !inE /beats eqxx k0 orbT.
rewrite /load; under eq_finset do rewrite picked.
by case: (k == ord0); rewrite ?cardsT ?card_ord //; apply/eqP; rewrite cards_eq0; apply/eqP/setP=> i; rewrite !inE.
Qed.

Lemma sum_two (f : 'I_2 -> F) : \sum_k f k = f ord0 + f ord_max.
Proof. by rewrite big_ord_recl big_ord1; congr (_ + f _); apply/val_inj. Qed.

Let half : F := 2%:R^-1.
Lemma half_target (k : 'I_2) : L k = half.
Proof. by rewrite /even muln1 mul1r. Qed.

Lemma D_zero : D zero_bias = 0.
Proof.
rewrite /D big1 ?big1 ?subrr // => [k _|i _]; first by rewrite mulr0.
by rewrite /top_sum big1 // => k _; rewrite /biased addr0.
Qed.

(* The token could take the second expert. *)
Lemma D_ge q : q ord_max - half * (q ord0 + q ord_max) <= D q.
Proof.
rewrite /D big_ord1 sum_two !half_target -mulrDr ler_add2r.
have := @top_sum_max F 2 1 (biased equal_scores q ord0) [set ord_max] isT (cards1 _).
by rewrite big_set1 /biased add0r.
Qed.

Theorem sign_rule_raises_D u : 0 < u -> D zero_bias + u <= D (sign_step 1 equal_scores L u zero_bias).
Proof.
move=> u0; rewrite D_zero add0r; apply: le_trans (D_ge _).
have half_gt0 : 0 < half by rewrite invr_gt0 ltr0n.
have half_lt1 : half - 1 < 0 by rewrite subr_lt0 invf_lt1 ?ltr0n // ltr1n.
rewrite /sign_step !load_zero /= !half_target subr0 (gtr0_sg half_gt0) (ltr0_sg half_lt1).
by rewrite /zero_bias !add0r mulrN mulr1 addNr mulr0 subr0.
Qed.

Theorem proportional_rule_raises_D eps : 0 < eps ->
  D zero_bias + eps / 2%:R <= D (proportional_step 1 equal_scores L eps zero_bias).
Proof.
move=> eps0; rewrite D_zero add0r; apply: le_trans (D_ge _).
rewrite /proportional_step !load_zero /= !half_target /zero_bias le_eqVlt; apply/orP; left; apply/eqP.
by rewrite /half; field.
Qed.

End Monotonicity.

(* ------------------------------------------------------- C6 and its limits *)
(* Below, numbers are rational. *)
Local Notation Q := [realFieldType of rat].

Definition matrix T E rows : 'I_T -> 'I_E -> rat := fun i k => table rows i k.
Definition vector E (f : nat -> rat) : 'I_E -> rat := fun k => f k.
Arguments matrix T E rows : clear implicits.
Arguments vector E f : clear implicits.

(* A plan whose value is D at some bias, both computed, is optimal by weak duality. *)
Lemma computed_optimum T E K scores x (L p : nat -> rat) : (K <= E)%N ->
  run_feasible T E K L (table x) ->
  run_D T E K (table scores) L p <= run_value T E (table scores) (table x) ->
  optimal K (matrix T E scores) (vector E L) (matrix T E x).
Proof.
move=> KE /run_feasibleP fx no_gap.
have [|//] := no_gap_optimal (scores := matrix T E scores) (p := vector E p) KE fx.
by rewrite run_DE run_valueE.
Qed.

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
- by apply: (computed_optimum (p := row [:: - 4%:Z; 4%:Z; 0; 0])); vm_compute.
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
- by apply: (computed_optimum (p := row [::])); vm_compute.
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
